//go:build goexperiment.simd

package kernel

import "simd"

var widths = []int{128}

// VectorBits is the width of the vectors that kernels use; 0 if GODEBUG=simd=0 asks for none.
func VectorBits() int {
	if simd.Emulated() {
		return 0
	}
	return 128
}
