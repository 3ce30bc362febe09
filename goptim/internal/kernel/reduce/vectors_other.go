//go:build !amd64 || !goexperiment.simd

package reduce

const vectors = false

func addSquaresFloat32(*[widest]float32, []float32, bool) {}
func addSquaresFloat64(*[widest]float64, []float64, bool) {}

func addFourSquaresFloat32(_ *[4][widest]float32, _, _, _, _ *float32, _ int, _ bool) {}
func addFourSquaresFloat64(_ *[4][widest]float64, _, _, _, _ *float64, _ int, _ bool) {}

func addSquaresBFloat16(*[widest]float32, *uint16, int, bool) {}

func addFourSquaresBFloat16(_ *[4][widest]float32, _, _, _, _ *uint16, _ int, _ bool) {}

func matrixSquaresFloat32(_, _, _ []float32, _ Order) int { return 0 }
func matrixSquaresFloat64(_, _, _ []float64, _ Order) int { return 0 }

func addFoursFloat32(*[4][widest]float32, []float32) {}
func addFoursFloat64(*[4][widest]float64, []float64) {}

func moveUpFloat32(_, _ *[4][widest]float32) {}
func moveUpFloat64(_, _ *[4][widest]float64) {}

func addToFloat32(_, _ []float32) int { return 0 }
func addToFloat64(_, _ []float64) int { return 0 }
