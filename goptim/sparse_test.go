package goptim_test

import (
	"fmt"
	"log"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/goptim/goptim/goptim"
)

func ExampleNewSparseAdam() {
	// In an embedding of 1000 words, a step changes only the rows of the words that occur.
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

func ExampleNewSparseSGD() {
	// Each gradient of a row is a separate step.
	words := &goptim.SparseParam[float32]{Name: "words", Value: make([]float32, 1000*2), Width: 2}
	opt, err := goptim.NewSparseSGD([]*goptim.SparseParam[float32]{words}, goptim.SGDOptions{LR: 0.5})
	if err != nil {
		log.Fatal(err)
	}
	words.Indices, words.Grad = []int64{7, 3, 7}, []float32{1, 1, -2, -2, 1, 1}
	if err := opt.Step(); err != nil {
		log.Fatal(err)
	}
	fmt.Println(words.Value[2*3:2*4], words.Value[2*7:2*8], words.Value[2*5:2*6])
	// Output: [1 1] [-1 -1] [0 0]
}

// A plain is torch's formula for one element, given the sum of its gradients. It is the reference of the tests.
type plain func(t int, x, g float64, state *[2]float64) float64

// steppers are the sparse optimizers with options, and their formulas.
var steppers = map[string]struct {
	make  func(params []*goptim.SparseParam[float64], workers int) (interface{ Step() error }, error)
	plain plain
}{
	"SparseAdam": {
		func(params []*goptim.SparseParam[float64], workers int) (interface{ Step() error }, error) {
			o, err := goptim.NewSparseAdam(params, goptim.SparseAdamOptions{LR: .01})
			o.Workers = workers
			return o, err
		},
		func(t int, x, g float64, s *[2]float64) float64 {
			s[0] += float64((g - s[0]) * (1 - .9))
			s[1] += float64((float64(g*g) - s[1]) * (1 - .999))
			step := .01 * math.Sqrt(1-math.Pow(.999, float64(t))) / (1 - math.Pow(.9, float64(t)))
			return x - float64(s[0]/(math.Sqrt(s[1])+1e-8)*step)
		},
	},
	"SparseAdagrad": {
		func(params []*goptim.SparseParam[float64], workers int) (interface{ Step() error }, error) {
			o, err := goptim.NewSparseAdagrad(params, goptim.AdagradOptions{LR: .01, LRDecay: .1, Maximize: true})
			o.Workers = workers
			return o, err
		},
		func(t int, x, g float64, s *[2]float64) float64 {
			s[0] += float64(g * g)
			return math.FMA(.01/(1+float64(float64(t-1)*.1)), g/(math.Sqrt(s[0])+1e-10), x)
		},
	},
	"SparseSGD": {
		func(params []*goptim.SparseParam[float64], workers int) (interface{ Step() error }, error) {
			o, err := goptim.NewSparseSGD(params, goptim.SGDOptions{LR: .01})
			o.Workers = workers
			return o, err
		},
		func(t int, x, g float64, s *[2]float64) float64 { return math.FMA(-.01, g, x) },
	},
}

// step applies the formula to the rows of a parameter that have a gradient.
func (f plain) step(t int, sums bool, p *goptim.SparseParam[float64], states [][2]float64) {
	update := func(index int64, g []float64) {
		for k, x := range g {
			at := int(index)*p.Width + k
			p.Value[at] = f(t, p.Value[at], x, &states[at])
		}
	}
	total := map[int64][]float64{}
	for i, index := range p.Indices {
		row := p.Grad[i*p.Width:][:p.Width]
		switch {
		case !sums:
			update(index, row)
		case total[index] == nil:
			total[index] = slices.Clone(row)
		default:
			for k, x := range row {
				total[index][k] += x
			}
		}
	}
	for index, g := range total {
		update(index, g)
	}
}

func TestSparse(t *testing.T) {
	for name := range steppers {
		for _, c := range []struct{ rows, width, n int }{{1, 1, 5}, {50, 7, 80}, {3, 5, 4000}, {5000, 33, 9000}, {50_000, 17, 80_000}, {3, 200_000, 5}} {
			if testing.Short() && c.n*c.width > 1<<19 {
				continue // large cases differ from the others only in how threads share the rows
			}
			for workers := 1; workers < 3; workers++ {
				t.Run(fmt.Sprintf("%s/%d x %d/%d", name, c.rows, c.width, workers), func(t *testing.T) {
					testSparse(t, name, c.rows, c.width, c.n, workers)
				})
			}
		}
	}
}

func testSparse(t *testing.T, name string, rows, width, n, workers int) {
	r := rand.New(rand.NewPCG(1, uint64(rows)))
	ours := &goptim.SparseParam[float64]{Value: make([]float64, rows*width), Width: width}
	for i := range ours.Value {
		ours.Value[i] = r.NormFloat64()
	}
	expected := *ours
	expected.Value = slices.Clone(ours.Value)
	states := make([][2]float64, len(ours.Value))
	opt, err := steppers[name].make([]*goptim.SparseParam[float64]{ours}, workers)
	require.NoError(t, err)
	for step := 1; step <= 3; step++ {
		ours.Indices, ours.Grad = make([]int64, n), make([]float64, n*width)
		for i := range ours.Indices {
			ours.Indices[i] = r.Int64N(int64(rows))
		}
		for i := range ours.Grad {
			ours.Grad[i] = r.NormFloat64()
		}
		expected.Indices, expected.Grad = ours.Indices, ours.Grad
		require.NoError(t, opt.Step())
		steppers[name].plain.step(step, name != "SparseSGD", &expected, states)
		if name == "SparseAdam" {
			for i, x := range expected.Value { // testify takes a second for a million elements
				if !(math.Abs(x-ours.Value[i]) <= 1e-12) { // math.Pow may differ from C's pow
					t.Fatalf("step %d: element %d is %v, expected %v", step, i, ours.Value[i], x)
				}
			}
		} else {
			requireEqual(t, expected.Value, ours.Value, "step %d", step)
		}
	}
}

func TestSparseRefuses(t *testing.T) {
	good := goptim.SparseParam[float64]{Name: "w", Value: make([]float64, 6), Width: 3, Indices: []int64{1}, Grad: []float64{1, 2, 3}}
	for name, stepper := range steppers {
		for says, spoil := range map[string]func(p *goptim.SparseParam[float64]){
			"parameter 0 (w): Width is 0":                    func(p *goptim.SparseParam[float64]) { p.Width = 0 },
			"6 elements, expected a multiple of Width":       func(p *goptim.SparseParam[float64]) { p.Width = 4 },
			"the gradient has 3 elements, expected 6, for 2": func(p *goptim.SparseParam[float64]) { p.Indices = []int64{1, 0} },
			"index 2, expected one of 2 rows":                func(p *goptim.SparseParam[float64]) { p.Indices = []int64{2} },
			"index -1, expected one of 2 rows":               func(p *goptim.SparseParam[float64]) { p.Indices = []int64{-1} },
		} {
			first, p := good, good
			params := []*goptim.SparseParam[float64]{&first, &p}
			opt, err := stepper.make(params, 1)
			require.NoError(t, err)
			spoil(&p)
			err = opt.Step()
			require.ErrorIs(t, err, goptim.ErrParam)
			require.ErrorContains(t, err, "goptim: "+name+": parameter 1 (w): ")
			require.ErrorContains(t, err, strings.TrimPrefix(says, "parameter 0 (w): "))
			assert.Equal(t, make([]float64, 6), first.Value)
		}
		p := good
		opt, err := stepper.make([]*goptim.SparseParam[float64]{&p}, 1)
		require.NoError(t, err)
		p.Grad, p.Indices = nil, nil
		require.NoError(t, opt.Step(), "no gradient")
		assert.Equal(t, make([]float64, 6), p.Value)
		if name != "SparseSGD" {
			p.Value = make([]float64, 3)
			require.ErrorContains(t, opt.Step(), "parameter 0 (w) has 3 elements, expected 6 as at the first step")
		}
	}
	p := []*goptim.SparseParam[float64]{&good}
	for says, make := range map[string]func() error{
		"LR is -1, expected above 0":                     func() error { _, err := goptim.NewSparseAdam(p, goptim.SparseAdamOptions{LR: -1}); return err },
		"SparseAdagrad: WeightDecay is 1, expected 0":    func() error { _, err := goptim.NewSparseAdagrad(p, goptim.AdagradOptions{WeightDecay: 1}); return err },
		"SparseSGD: WeightDecay is 1, expected 0":        func() error { _, err := goptim.NewSparseSGD(p, goptim.SGDOptions{WeightDecay: 1}); return err },
		"SparseSGD: Momentum is 0.9, expected 0":         func() error { _, err := goptim.NewSparseSGD(p, goptim.SGDOptions{Momentum: .9}); return err },
		"goptim: SGD: LR is -1, expected at least 0":     func() error { _, err := goptim.NewSparseSGD(p, goptim.SGDOptions{LR: -1}); return err },
		"goptim: Adagrad: LR is -1, expected at least 0": func() error { _, err := goptim.NewSparseAdagrad(p, goptim.AdagradOptions{LR: -1}); return err },
	} {
		require.ErrorIs(t, make(), goptim.ErrOption)
		require.ErrorContains(t, make(), says)
	}
	for says, params := range map[string][]*goptim.SparseParam[float64]{
		"no parameters":                  nil,
		"parameter 1 is nil":             {&good, nil},
		"parameter 1 (w) is given twice": {&good, &good},
		"parameter 0 (w): Width is 0":    {{Name: "w"}},
	} {
		_, err := goptim.NewSparseSGD(params, goptim.SGDOptions{})
		require.ErrorIs(t, err, goptim.ErrParam)
		require.ErrorContains(t, err, says)
	}
}
