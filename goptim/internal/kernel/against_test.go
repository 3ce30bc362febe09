package kernel_test

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/goptim/goptim/goptim/internal/kernel"
	lane32 "github.com/goptim/goptim/goptim/internal/kernel/lane/f32"
	lane64 "github.com/goptim/goptim/goptim/internal/kernel/lane/f64"
)

func laneVariants32() []variant[float32] {
	return variants(kernels[float32]{
		lane32.Adam, lane32.SGD, lane32.Adagrad, lane32.Adadelta, lane32.Adamax, lane32.ASGD, lane32.NAdam, lane32.RAdam, lane32.RMSprop, lane32.Rprop,
		lane32.SparseSGD, lane32.SparseAdagrad, lane32.SparseAdam, lane32.Accumulate,
		[]kernel.Func[kernel.Adafactor, float32]{
			lane32.AdafactorMean, lane32.AdafactorRow, lane32.AdafactorProduct, lane32.AdafactorVector, lane32.AdafactorSingles,
			lane32.AdafactorStep,
		},
		[]kernel.Func[kernel.HFAdafactor, float32]{
			lane32.HFAdafactorMoment, lane32.HFAdafactorSquares, lane32.HFAdafactorFactor, lane32.HFAdafactorRow, lane32.HFAdafactorVector,
			lane32.HFAdafactorStep,
		},
		lane32.MuonMomentum, lane32.MuonUpdate, lane32.Combine,
	})
}

func laneVariants64() []variant[float64] {
	return variants(kernels[float64]{
		lane64.Adam, lane64.SGD, lane64.Adagrad, lane64.Adadelta, lane64.Adamax, lane64.ASGD, lane64.NAdam, lane64.RAdam, lane64.RMSprop, lane64.Rprop,
		lane64.SparseSGD, lane64.SparseAdagrad, lane64.SparseAdam, lane64.Accumulate,
		[]kernel.Func[kernel.Adafactor, float64]{
			lane64.AdafactorMean, lane64.AdafactorRow, lane64.AdafactorProduct, lane64.AdafactorVector, lane64.AdafactorSingles,
			lane64.AdafactorStep,
		},
		[]kernel.Func[kernel.HFAdafactor, float64]{
			lane64.HFAdafactorMoment, lane64.HFAdafactorSquares, lane64.HFAdafactorFactor, lane64.HFAdafactorRow, lane64.HFAdafactorVector,
			lane64.HFAdafactorStep,
		},
		lane64.MuonMomentum, lane64.MuonUpdate, lane64.Combine,
	})
}

// TestAgainstLane holds every kernel against its one-lane copy, bit for bit but for the payload of a NaN, at every length,
// on values of all sizes and on those that an operation on vectors treats apart.
func TestAgainstLane(t *testing.T) {
	t.Run("float32", func(t *testing.T) { against(t, variants32(), laneVariants32(), 1e38, 1e-40) })
	t.Run("float64", func(t *testing.T) { against(t, variants64(), laneVariants64(), 1e308, 1e-310) })
}

func against[T kernel.Float](t *testing.T, vectors, lanes []variant[T], huge, tiny float64) {
	random := rand.New(rand.NewPCG(3, 4))
	special := []float64{0, math.Copysign(0, -1), math.Inf(1), math.Inf(-1), math.NaN(), huge, -huge, tiny, -tiny, 1, -1}
	values := map[string]func() float64{
		"normal": random.NormFloat64,
		"wide":   func() float64 { return random.NormFloat64() * math.Exp2(float64(random.IntN(120)-60)) },
		"special": func() float64 {
			if random.IntN(4) == 0 {
				return special[random.IntN(len(special))]
			}
			return random.NormFloat64()
		},
	}
	for i, v := range vectors {
		for kind, value := range values {
			for n := range longest + 1 {
				ours, expected := make([][]T, v.columns), make([][]T, v.columns)
				for k := range ours {
					for range n {
						ours[k] = append(ours[k], T(value()))
					}
					expected[k] = slices.Clone(ours[k])
				}
				before := make([][]T, v.columns)
				for k := range ours {
					before[k] = slices.Clone(ours[k])
				}
				v.update(ours)
				lanes[i].update(expected)
				for k := range ours {
					at := -1
					for e := range ours[k] {
						if x, y := ours[k][e], expected[k][e]; math.Float64bits(float64(x)) != math.Float64bits(float64(y)) && (x == x || y == y) {
							at = e
							break
						}
					}
					if at >= 0 {
						var from []T
						for _, column := range before {
							from = append(from, column[at])
						}
						t.Fatalf("%s, %s values, element %d of %d in column %d: %v, one lane has %v; from %v", v.name, kind, at, n, k, ours[k][at], expected[k][at], from)
					}
				}
			}
		}
	}
}
