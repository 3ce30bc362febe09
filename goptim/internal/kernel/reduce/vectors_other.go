//go:build !amd64 || !goexperiment.simd

package reduce

const vectors = false

func addSquaresFloat32(*[widest]float32, []float32, bool) {}
func addSquaresFloat64(*[widest]float64, []float64, bool) {}

func matrixSquaresFloat32(_, _, _ []float32, _ Order) int { return 0 }
func matrixSquaresFloat64(_, _, _ []float64, _ Order) int { return 0 }
