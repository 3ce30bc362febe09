//go:build !amd64 || !goexperiment.simd

package kernel

// AdafactorConvolutions takes no matrices here.
func AdafactorConvolutions[T Float](*Adafactor, []T, []T, []T, []T) int { return 0 }
