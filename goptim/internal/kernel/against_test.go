package kernel_test

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/goptim/goptim/goptim/internal/kernel"
)

// TestAgainstLane compares every kernel with its one-lane copy, bit for bit except for the payload of a NaN, at every length,
// with values of all magnitudes and special values.
func TestAgainstLane(t *testing.T) {
	onCopies(t,
		func(t *testing.T, k kernels) { against[float32](t, k, 1e38, 1e-40) },
		func(t *testing.T, k kernels) { against[float64](t, k, 1e308, 1e-310) })
}

func against[T kernel.Float](t *testing.T, k kernels, huge, tiny float64) {
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
	lanes := variants[T](single[T]())
	for i, v := range variants[T](k) {
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
