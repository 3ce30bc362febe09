//go:build !goexperiment.simd || wasm

// Package kernel is what the kernels of its subfolders share.
package kernel

// VectorBits is 0: kernels take one element at a time.
func VectorBits() int { return 0 }
