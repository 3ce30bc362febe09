//go:build !amd64 || !goexperiment.simd

package kernel

// AdafactorConvolutions processes no matrices on this architecture.
func AdafactorConvolutions[T Float](*Adafactor, []T, []T, []T, []T) int { return 0 }
