//go:build goexperiment.simd && !wasm && !amd64

// Package kernel is what the kernels of its subfolders share.
package kernel

import "simd"

// VectorBits is the width of the vectors that kernels use; 0 where vectors are emulated.
func VectorBits() int {
	if simd.Emulated() {
		return 0
	}
	return simd.VectorBitSize()
}
