package goptim_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/goptim/goptim/goptim"
)

func ExampleNewAdafactor() {
	w := &goptim.Param[float32]{Name: "w", Value: make([]float32, 6), Grad: []float32{1, 2, 3, 4, 5, 6}, Shape: []int{2, 3}}
	opt, err := goptim.NewAdafactor([]*goptim.Param[float32]{w}, goptim.AdafactorOptions{LR: 0.01})
	if err != nil {
		panic(err)
	}
	if err := opt.Step(); err != nil {
		panic(err)
	}
	fmt.Printf("%.2e\n", w.Value)
	// Output: [-6.18e-06 -9.47e-06 -1.14e-05 -1.05e-05 -1.01e-05 -9.72e-06]
}

func TestAdafactorRefuses(t *testing.T) {
	good := func() []*goptim.Param[float64] {
		return []*goptim.Param[float64]{{Name: "w", Value: make([]float64, 6), Grad: make([]float64, 6), Shape: []int{2, 3}}}
	}
	for want, o := range map[string]goptim.AdafactorOptions{
		"LR is -1, expected at least 0":        {LR: -1},
		"Beta2Decay is 1, expected at most 0":  {Beta2Decay: 1},
		"Eps[0] is -1, expected at least 0":    {Eps: [2]float64{-1, 0}},
		"Eps[1] is -1, expected at least 0":    {Eps: [2]float64{0, -1}},
		"D is 0.5, expected at least 1":        {D: .5},
		"D is NaN, expected at least 1":        {D: math.NaN()},
		"WeightDecay is -1, expected at least": {WeightDecay: -1},
	} {
		_, err := goptim.NewAdafactor(good(), o)
		require.ErrorIs(t, err, goptim.ErrOption)
		require.ErrorContains(t, err, want)
	}
	for _, shape := range [][]int{{2, 2}, {-2, -3}, {6, 0}, {1 << 40, 1 << 40}, {7}} {
		params := good()
		params[0].Shape = shape
		_, err := goptim.NewAdafactor(params, goptim.AdafactorOptions{})
		require.ErrorIs(t, err, goptim.ErrParam)
		require.ErrorContains(t, err, "parameter 0 (w): shape")
	}
	_, err := goptim.NewAdafactor[float32](nil, goptim.AdafactorOptions{})
	require.ErrorIs(t, err, goptim.ErrParam)

	params := good()
	opt, err := goptim.NewAdafactor(params, goptim.AdafactorOptions{})
	require.NoError(t, err)
	params[0].Grad = params[0].Grad[:5]
	require.ErrorContains(t, opt.Step(), "the gradient has 5 elements, expected 6")
	params[0].Grad, params[0].Shape = make([]float64, 6), []int{3, 2}
	require.ErrorContains(t, opt.Step(), "expected that of the first step")
	params[0].Shape = []int{2, 3}
	opt.LR = -1
	require.ErrorIs(t, opt.Step(), goptim.ErrOption)
	assert.Equal(t, make([]float64, 6), params[0].Value)
}

func TestAdafactorHasOneResultForAnyNumberOfWorkers(t *testing.T) {
	run := func(workers int) []*goptim.Param[float32] {
		shapes := [][]int{{64, 700}, {40000, 2}, {50000}, {90, 30, 3, 3}, {7, 7}, {0}, {3, 0}}
		var params []*goptim.Param[float32]
		for k, shape := range shapes {
			n := 1
			for _, size := range shape {
				n *= size
			}
			params = append(params, &goptim.Param[float32]{Value: wave(n, k), Shape: shape})
		}
		opt, err := goptim.NewAdafactor(params, goptim.AdafactorOptions{WeightDecay: .1})
		require.NoError(t, err)
		opt.Workers = workers
		for step := range 3 {
			for k, p := range params {
				p.Grad = wave(len(p.Value), 10*step+k)
			}
			require.NoError(t, opt.Step())
		}
		return params
	}
	one := run(1)
	for _, workers := range []int{0, 2, 5} {
		for i, p := range run(workers) {
			require.True(t, slices.Equal(one[i].Value, p.Value), "%d workers: parameter %d", workers, i)
		}
	}
}

func wave(n, k int) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(math.Sin(float64(i*7 + k*131)))
	}
	return x
}

func BenchmarkAdafactor(b *testing.B) {
	for _, shape := range [][]int{{512, 512, 3, 3}, {64, 64, 3, 3}, {1024, 512, 1, 1}, {2048, 1024, 1, 1}, {64, 3, 7, 7}, {128, 128, 5, 5}, {256, 256, 1, 7}, {256, 256, 2, 2}, {128, 32, 11, 11}, {1024, 1024}} {
		b.Run(fmt.Sprint(shape), func(b *testing.B) {
			b.Run("float32", func(b *testing.B) { benchmarkAdafactor[float32](b, shape) })
			b.Run("float64", func(b *testing.B) { benchmarkAdafactor[float64](b, shape) })
		})
	}
}

func benchmarkAdafactor[T goptim.Float](b *testing.B, shape []int) {
	n := 1
	for _, size := range shape {
		n *= size
	}
	p := &goptim.Param[T]{Value: make([]T, n), Grad: make([]T, n), Shape: shape}
	for i := range p.Value {
		p.Value[i], p.Grad[i] = T(rand.NormFloat64()), T(rand.NormFloat64())
	}
	opt, err := goptim.NewAdafactor([]*goptim.Param[T]{p}, goptim.AdafactorOptions{})
	require.NoError(b, err)
	opt.Workers = 1
	for b.Loop() {
		if err := opt.Step(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/element")
}
