//go:build !(goexperiment.simd && (amd64 || arm64))

package kernel

func widenVectors(to []float32, from *uint16, f Format, ahead int) bool { return false }

func narrowVectors(to *uint16, from []float32, f Format) bool { return false }

func narrowVectorsWith(z *Noise, to *uint16, from []float32, f Format, first int) bool { return false }

func addVectors(to, from []float32) bool { return false }

func subtractVectors(to, from []float32) bool { return false }
