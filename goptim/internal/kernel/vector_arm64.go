//go:build goexperiment.simd

package kernel

import "simd"

var widths = []int{128}

// VectorBits is the vector width of the kernels; 0 if GODEBUG=simd=0.
func VectorBits() int {
	if simd.Emulated() {
		return 0
	}
	return 128
}
