package goptim_test

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/goptim/goptim/goptim"
)

// measuring are optimizers whose rows are processed twice.
func measuring[T goptim.Element](params []*goptim.Param[T], workers int) map[string]goptim.Optimizer {
	adamw, err := goptim.NewAdamWLegacy(params, goptim.AdamWLegacyOptions{Caution: true, ClippingThreshold: .3})
	lamb, err2 := goptim.NewLAMB(params, goptim.LAMBOptions{WeightDecay: .1, MaxGradNorm: 1, Caution: true})
	lars, err3 := goptim.NewLARS(params, goptim.LARSOptions{WeightDecay: .1, Momentum: .9})
	stable, err4 := goptim.NewStableAdamW(params, goptim.StableAdamWOptions{WeightDecay: .1})
	if err := errors.Join(err, err2, err3, err4); err != nil {
		panic(err)
	}
	adamw.Workers, lamb.Workers, lars.Workers, stable.Workers = workers, workers, workers, workers
	return map[string]goptim.Optimizer{"AdamWLegacy": adamw, "LAMB": lamb, "LARS": lars, "StableAdamW": stable}
}

// TestMeasuresOnThreads checks that results do not depend on the number of threads, for rows that one thread updates at once, that
// are divided, and that share memory.
func TestMeasuresOnThreads(t *testing.T) {
	t.Run("float32", func(t *testing.T) { testMeasures(t, func(x float64) float32 { return float32(x) }) })
	t.Run("float64", func(t *testing.T) { testMeasures(t, func(x float64) float64 { return x }) })
	t.Run("bfloat16", func(t *testing.T) {
		testMeasures(t, func(x float64) goptim.BFloat16 { return goptim.BFloat16FromFloat32(float32(x)) })
	})
}

func testMeasures[T goptim.Element](t *testing.T, of func(float64) T) {
	for _, shared := range []bool{false, true} {
		fresh := func() []*goptim.Param[T] {
			r := rand.New(rand.NewPCG(1, 2))
			some := func(n int) []T {
				x := make([]T, n)
				for i := range x {
					x[i] = of(r.NormFloat64())
				}
				return x
			}
			var params []*goptim.Param[T]
			for _, n := range []int{5, 150_000, 0, 1, 70_000, 64, 64, 20_000, 3} {
				params = append(params, &goptim.Param[T]{Value: some(n), Grad: some(n)})
			}
			if shared {
				params[4].Value = params[1].Value[:70_000]
			}
			return params
		}
		for name := range measuring(fresh(), 1) {
			expected := fresh()
			serial := measuring(expected, 1)[name]
			for range 2 {
				require.NoError(t, serial.Step())
			}
			for _, workers := range []int{2, 3} {
				actual := fresh()
				parallel := measuring(actual, workers)[name]
				for range 2 {
					require.NoError(t, parallel.Step())
				}
				for i := range expected {
					require.Equal(t, expected[i].Value, actual[i].Value, "%s, %d workers, parameter %d", name, workers, i)
				}
			}
		}
	}
}
