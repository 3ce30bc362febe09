//go:build !(goexperiment.simd && amd64)

package kernel

// Leave ends a stretch of vector code; here that costs nothing.
func Leave() {}
