//go:build !goexperiment.simd || (!amd64 && !arm64)

package kernel

var widths []int

// VectorBits is 0: kernels take one element at a time.
func VectorBits() int { return 0 }
