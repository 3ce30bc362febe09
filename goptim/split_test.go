package goptim

import (
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"unsafe"

	testify "github.com/stretchr/testify/require"

	"github.com/goptim/goptim/goptim/internal/engine"
)

// splits are some ways to cut n elements into ranges: at random places, in any order.
func splits(r *rand.Rand, n int) [][2]int {
	cuts := []int{0, n}
	for range r.IntN(9) {
		cuts = append(cuts, r.IntN(n+1))
	}
	slices.Sort(cuts)
	var all [][2]int
	for i := range cuts[1:] {
		if cuts[i] < cuts[i+1] {
			all = append(all, [2]int{cuts[i], cuts[i+1]})
		}
	}
	r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all
}

// testSplit updates every row whole in one optimizer, and in any ranges in another.
func testSplit[T Float, S any](t *testing.T, name string, r rule[S]) {
	t.Run(fmt.Sprintf("%s %T", name, T(0)), func(t *testing.T) {
		random := rand.New(rand.NewPCG(1, 2))
		fresh := func() *base[T, S] {
			var params []*Param[T]
			for _, n := range []int{1, 7, 100, 5000} {
				p := &Param[T]{}
				for i := range n {
					p.Value, p.Grad = append(p.Value, T(math.Sin(float64(i+n)))), append(p.Grad, 0)
				}
				params = append(params, p)
			}
			b, err := newBase(r, params)
			testify.NoError(t, err)
			return &b
		}
		whole, split := fresh(), fresh()
		for range 5 {
			for i, p := range whole.params {
				for k := range p.Grad {
					p.Grad[k] = T(random.NormFloat64())
				}
				copy(split.params[i].Grad, p.Grad)
			}
			for _, b := range []*base[T, S]{whole, split} {
				if b.gather(r) {
					b.makeStates(r)
				}
				b.pass.begin(r.kernels(), b.rows)
				testify.NoError(t, b.pass.add(r, len(b.rows), now{pow: math.Pow}))
				total := 0
				for i := range b.rows {
					total += int(b.rows[i].N)
				}
				ranges := [][2]int{{0, total}}
				if b == split {
					ranges = splits(random, total)
				}
				for _, at := range ranges {
					b.pass.Update(partOf(b.rows, at[0], at[1]))
				}
			}
			for i, p := range whole.params {
				testify.Equal(t, p.Value, split.params[i].Value)
				testify.Equal(t, whole.states[i], split.states[i])
			}
		}
	})
}

// partOf is elements lo to hi of rows laid end to end.
func partOf(rows []engine.Row, lo, hi int) engine.Part {
	p, start := engine.Part{First: -1}, 0
	for i := range rows {
		n := int(rows[i].N)
		if p.First < 0 && lo < start+n {
			p.First, p.Lo = i, lo-start
		}
		if hi <= start+n {
			p.Last, p.Hi = i, hi-start
			return p
		}
		start += n
	}
	panic("beyond the rows")
}

func TestAnySplitHasTheSameBits(t *testing.T) {
	betas := [2]float64{.9, .99}
	testSplitOf(t, "SGD", &SGDOptions{LR: .1, Momentum: .9, WeightDecay: .1})
	testSplitOf(t, "AdamW", &AdamOptions{LR: .1, Betas: betas, Eps: 1e-8, WeightDecay: .1, DecoupledWeightDecay: true})
	testSplitOf(t, "AMSGrad", &AdamOptions{LR: .1, Betas: betas, Eps: 1e-8, WeightDecay: .1, AMSGrad: true})
	testSplitOf(t, "Adagrad", &AdagradOptions{LR: .1, Eps: 1e-10})
	testSplitOf(t, "Adadelta", &AdadeltaOptions{LR: .1, Rho: .9, Eps: 1e-6})
	testSplitOf(t, "Adamax", &AdamaxOptions{LR: .1, Betas: betas, Eps: 1e-8})
	testSplitOf(t, "ASGD", &ASGDOptions{LR: .1, Lambd: .1, Alpha: .75, T0: 1})
	testSplitOf(t, "NAdam", &NAdamOptions{LR: .1, Betas: betas, Eps: 1e-8, MomentumDecay: .1})
	testSplitOf(t, "RAdam", &RAdamOptions{LR: .1, Betas: [2]float64{.9, .8}, Eps: 1e-8})
	testSplitOf(t, "RMSprop", &RMSpropOptions{LR: .1, Alpha: .9, Eps: 1e-8, Momentum: .9, Centered: true})
	testSplitOf(t, "Rprop", &RpropOptions{LR: .1, Etas: [2]float64{.5, 1.2}, StepSizes: [2]float64{1e-6, 50}})
}

func testSplitOf[S any](t *testing.T, name string, r rule[S]) {
	testSplit[float32](t, name, r)
	testSplit[float64](t, name, r)
}

// TestAnySplitOfSparseRows does the same with the rows that have a gradient.
func TestAnySplitOfSparseRows(t *testing.T) {
	adam := &SparseAdamOptions{LR: .1, Betas: [2]float64{.9, .99}, Eps: 1e-8}
	testSparseSplit(t, "SparseAdam", adam)
	testSparseSplit(t, "SparseAdagrad", sparseAdagrad{&AdagradOptions{LR: .1, Eps: 1e-10}})
	testSparseSplit(t, "SparseSGD", sparseSGD{&SGDOptions{LR: .1}})
}

func testSparseSplit[S any](t *testing.T, name string, r sparseRule[S]) {
	random := rand.New(rand.NewPCG(3, 4))
	rows, width, n := 30+random.IntN(20), 10+random.IntN(20), 60+random.IntN(60)
	run := func(split bool, indices []int64, grad []float32) []float32 {
		p := &SparseParam[float32]{Value: make([]float32, rows*width), Width: width, Indices: indices, Grad: grad}
		var columns [engine.States][]float32
		var table SparseTable
		for k, use := range r.layout().State {
			if use == engine.Column {
				columns[k] = make([]float32, rows*width)
				table.State[k] = address(columns[k])
			}
		}
		table.Param, table.Values, table.Rows, table.Width = address(p.Value), address(p.Grad), rows, width
		table.Indices, table.N, table.Step, table.Pow = uintptr(unsafe.Pointer(unsafe.SliceData(indices))), n, 3, math.Pow
		pass := &sparsePass[S]{}
		testify.NoError(t, pass.rows.find(&table))
		size := pass.rows.len() * width
		pass.row[0] = engine.Row{N: int64(size), Kind: engine.KindOf(engine.Float32, engine.None)}
		pass.table, pass.kernels, pass.sums = table, r.rowKernels(), r.sums()
		pass.h = r.scalars(&now{row: &pass.row[0], log: &pass.log, t: 3, pow: math.Pow})
		ranges := [][2]int{{0, size}}
		if split {
			ranges = splits(random, size)
		}
		for _, at := range ranges {
			pass.Update(engine.Part{Lo: at[0], Hi: at[1]})
		}
		runtime.KeepAlive(grad)
		return slices.Concat(p.Value, columns[0], columns[1], columns[2])
	}
	for range 50 {
		indices, grad := make([]int64, n), make([]float32, n*width)
		for i := range indices {
			indices[i] = random.Int64N(int64(rows))
		}
		for i := range grad {
			grad[i] = float32(random.NormFloat64())
		}
		testify.Equal(t, run(false, indices, grad), run(true, indices, grad), name)
	}
}
