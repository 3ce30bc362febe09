//go:build !goexperiment.simd || (!amd64 && !arm64)

package kernel

var widths []int

// VectorBits is 0: kernels process one element at a time.
func VectorBits() int { return 0 }
