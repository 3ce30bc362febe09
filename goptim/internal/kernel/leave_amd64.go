//go:build goexperiment.simd

package kernel

import "simd/archsimd"

// Leave ends a stretch of vector code. Go's scalar floating-point code is SSE, and an Intel core that runs it while
// the upper halves of the vector registers are in use is ten times slower; the compiler does not clear them.
func Leave() {
	if archsimd.X86.AVX() {
		archsimd.ClearAVXUpperBits()
	}
}
