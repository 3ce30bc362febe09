package goptim_test

import (
	"fmt"
	"log"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/goptim/goptim/goptim"
)

func ExampleNewSparseAdam() {
	// Of an embedding of 1000 words, a step moves the rows of the words that it has seen.
	words := &goptim.SparseParam[float32]{Name: "words", Value: make([]float32, 1000*2), Width: 2}
	opt, err := goptim.NewSparseAdam([]*goptim.SparseParam[float32]{words}, goptim.SparseAdamOptions{LR: 0.1})
	if err != nil {
		log.Fatal(err)
	}
	words.Indices, words.Grad = []int64{7, 3, 7}, []float32{1, 1, -2, -2, 1, 1}
	if err := opt.Step(); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%.1f %.1f %.1f\n", words.Value[2*3:2*4], words.Value[2*7:2*8], words.Value[2*5:2*6])
	// Output: [0.1 0.1] [-0.1 -0.1] [0.0 0.0]
}

// plainSparseAdam is torch's formula, one element after the other: the test's oracle.
func plainSparseAdam(t int, o goptim.SparseAdamOptions, p *goptim.SparseParam[float64], m, v []float64) {
	sums := map[int64][]float64{}
	for i, index := range p.Indices {
		row := p.Grad[i*p.Width:][:p.Width]
		if sums[index] == nil {
			sums[index] = append([]float64(nil), row...)
			continue
		}
		for k, x := range row {
			sums[index][k] += x
		}
	}
	step := -(o.LR * math.Sqrt(1-math.Pow(o.Betas[1], float64(t))) / (1 - math.Pow(o.Betas[0], float64(t))))
	for index, g := range sums {
		for k, x := range g {
			at := int(index)*p.Width + k
			m[at] += float64((x - m[at]) * (1 - o.Betas[0]))
			v[at] += float64((float64(x*x) - v[at]) * (1 - o.Betas[1]))
			p.Value[at] += m[at] / (math.Sqrt(v[at]) + o.Eps) * step
		}
	}
}

func TestSparseAdam(t *testing.T) {
	o := goptim.SparseAdamOptions{LR: .01, Betas: [2]float64{.9, .999}, Eps: 1e-8}
	for _, c := range []struct{ rows, width, n int }{{1, 1, 5}, {50, 7, 80}, {5000, 33, 9000}, {100_000, 8, 90_000}} {
		r := rand.New(rand.NewPCG(1, uint64(c.rows)))
		ours := &goptim.SparseParam[float64]{Value: make([]float64, c.rows*c.width), Width: c.width}
		for i := range ours.Value {
			ours.Value[i] = r.NormFloat64()
		}
		expected := *ours
		expected.Value = append([]float64(nil), ours.Value...)
		m, v := make([]float64, len(ours.Value)), make([]float64, len(ours.Value))
		opt, err := goptim.NewSparseAdam([]*goptim.SparseParam[float64]{ours}, o)
		require.NoError(t, err)
		for step := 1; step <= 4; step++ {
			opt.Workers = step % 3
			ours.Indices, ours.Grad = make([]int64, c.n), make([]float64, c.n*c.width)
			for i := range ours.Indices {
				ours.Indices[i] = r.Int64N(int64(c.rows))
			}
			for i := range ours.Grad {
				ours.Grad[i] = r.NormFloat64()
			}
			expected.Indices, expected.Grad = ours.Indices, ours.Grad
			require.NoError(t, opt.Step())
			plainSparseAdam(step, o, &expected, m, v)
			require.InDeltaSlice(t, expected.Value, ours.Value, 1e-12, "step %d", step) // math.Pow is not C's
		}
	}
}

func TestSparseAdamRefuses(t *testing.T) {
	good := goptim.SparseParam[float32]{Name: "w", Value: make([]float32, 6), Width: 3, Indices: []int64{1}, Grad: []float32{1, 2, 3}}
	for says, spoil := range map[string]func(p *goptim.SparseParam[float32]){
		"parameter 0 (w): Width is 0":                    func(p *goptim.SparseParam[float32]) { p.Width = 0 },
		"6 elements, expected a multiple of Width":       func(p *goptim.SparseParam[float32]) { p.Width = 4 },
		"the gradient has 3 elements, expected 6, for 2": func(p *goptim.SparseParam[float32]) { p.Indices = []int64{1, 0} },
		"index 2, expected one of 2 rows":                func(p *goptim.SparseParam[float32]) { p.Indices = []int64{2} },
		"index -1, expected one of 2 rows":               func(p *goptim.SparseParam[float32]) { p.Indices = []int64{-1} },
	} {
		p := good
		spoil(&p)
		_, err := goptim.NewSparseAdam([]*goptim.SparseParam[float32]{&p}, goptim.SparseAdamOptions{})
		require.ErrorIs(t, err, goptim.ErrParam)
		require.ErrorContains(t, err, says)
		p = good
		opt, err := goptim.NewSparseAdam([]*goptim.SparseParam[float32]{&p}, goptim.SparseAdamOptions{})
		require.NoError(t, err)
		spoil(&p)
		require.ErrorIs(t, opt.Step(), goptim.ErrParam, says)
		assert.Equal(t, make([]float32, 6), p.Value)
	}
	_, err := goptim.NewSparseAdam([]*goptim.SparseParam[float32]{&good}, goptim.SparseAdamOptions{LR: -1})
	require.ErrorIs(t, err, goptim.ErrOption)
	_, err = goptim.NewSparseAdam[float32](nil, goptim.SparseAdamOptions{})
	require.ErrorIs(t, err, goptim.ErrParam)
	require.ErrorIs(t, goptim.SparseAdamOptions{}.StepSparse(goptim.SparseTable{Rows: 1, Width: 1, N: 1}), goptim.ErrParam)
	require.ErrorIs(t, goptim.SparseAdamOptions{}.StepSparse(goptim.SparseTable{Rows: 1, Width: 0}), goptim.ErrParam)
}
