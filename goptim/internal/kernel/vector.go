//go:build goexperiment.simd && !wasm

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

// OfWidth is the kernel for the width of vectors that VectorBits tells.
func OfWidth[F any](lane, w128, w256, w512 F) F {
	switch VectorBits() {
	case 128:
		return w128
	case 256:
		return w256
	case 512:
		return w512
	}
	return lane
}
