//go:build !(goexperiment.simd && amd64)

package kernel

// Leave does nothing on this architecture.
func Leave() {}
