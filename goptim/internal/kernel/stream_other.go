//go:build !(goexperiment.simd && amd64)

package kernel

func productVectors(_, _ *uint16, _ Format, _ int, _ float32, _ *[16]uint32) bool { return false }

func lerpVectors(_, _ *uint16, _ Format, _ int, _ float32, _ uint32) bool { return false }
