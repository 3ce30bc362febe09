//go:build goexperiment.simd

package kernel

import "simd/archsimd"

// Leave clears the upper halves of the vector registers after vector code. Go's scalar floating-point code uses SSE, which is ten
// times slower on Intel cores while the upper halves are in use. The compiler does not clear them.
func Leave() {
	if archsimd.X86.AVX() {
		archsimd.ClearAVXUpperBits()
	}
}
