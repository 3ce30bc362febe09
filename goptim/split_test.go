package goptim

import (
	"math"
	"math/rand/v2"
	"reflect"
	"runtime"
	"slices"
	"testing"
	"unsafe"

	testify "github.com/stretchr/testify/require"

	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/internal/steps"
)

// splits returns several ways to cut n elements into ranges, at random positions and in any order.
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

// TestAnySplitHasTheSameBits updates the rows of every registered optimizer whole and in arbitrary ranges, and compares
// the results. The options are the defaults, and those that enable all states and flags.
func TestAnySplitHasTheSameBits(t *testing.T) {
	for _, k := range steps.Kinds() {
		if s, ok := k.Spec.(interface{ testSplits(t *testing.T) }); ok {
			t.Run(k.Name, s.testSplits)
		} else {
			others := []string{"Adafactor", "HFAdafactor", "MuonMomentum", "MuonUpdate", "Unscale", "Norms", "GradNorm", "ClipGradNorm"}
			testify.Contains(t, others, k.Name)
		}
	}
}

func (s *spec[O, S]) testSplits(t *testing.T) {
	if s.arithmetic.estimate != nil {
		t.Skip("without the pass before, nothing is updated")
	}
	for _, all := range []bool{false, true} {
		var o O
		if s.setAllDefaults(&o); all {
			for i := range s.fields {
				if f := &s.fields[i]; f.kind == reflect.Bool || f.key == "momentum" {
					f.set(unsafe.Pointer(&o), 0, .9)
				}
			}
		}
		testSplit[float32](t, s, o)
		testSplit[float64](t, s, o)
	}
}

func testSplit[T Float, O, S any](t *testing.T, s *spec[O, S], o O) {
	random := rand.New(rand.NewPCG(1, 2))
	workers := 1
	fresh := func() *elementwise[T, O, S] {
		var params []*Param[T]
		for _, n := range []int{1, 7, 100, 5000} {
			p := &Param[T]{}
			for i := range n {
				p.Value, p.Grad = append(p.Value, T(math.Sin(float64(i+n)))), append(p.Grad, 0)
			}
			params = append(params, p)
		}
		e := new(elementwise[T, O, S])
		testify.NoError(t, e.begin(s, &o, &workers, params))
		return e
	}
	whole, split := fresh(), fresh()
	for range 5 {
		for i, p := range whole.params {
			for k := range p.Grad {
				p.Grad[k] = T(random.NormFloat64())
			}
			copy(split.params[i].Grad, p.Grad)
		}
		for _, e := range []*elementwise[T, O, S]{whole, split} {
			if e.gather() {
				e.makeStates()
			}
			testify.NoError(t, e.scalars())
			testify.True(t, e.pass.Prepare())
			total := 0
			for i := range e.rows {
				total += int(e.rows[i].N)
			}
			ranges := [][2]int{{0, total}}
			if e == split {
				ranges = splits(random, total)
			}
			for _, at := range ranges {
				e.pass.Update(partOf(e.rows, at[0], at[1]))
			}
		}
		for i, p := range whole.params {
			testify.Equal(t, p.Value, split.params[i].Value)
			testify.Equal(t, whole.states[i], split.states[i])
		}
	}
}

// partOf returns elements lo to hi of the concatenated rows.
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

// testSplits is the same test for the rows that have a gradient.
func (s *sparseSpec[O, S]) testSplits(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	rows, width, n := 30+random.IntN(20), 10+random.IntN(20), 60+random.IntN(60)
	var o O
	s.setAllDefaults(&o)
	run := func(split bool, indices []int64, grad []float32) []float32 {
		value := make([]float32, rows*width)
		var columns [engine.Columns][]float32
		row := sparseRow{
			param: address(value), values: address(grad), rows: int64(rows), width: int64(width), dtype: int64(engine.Float32),
			indices: uintptr(unsafe.Pointer(unsafe.SliceData(indices))), n: int64(n), step: 3,
		}
		for k, use := range s.layout(&o).State {
			if use == engine.Column {
				columns[k] = make([]float32, rows*width)
				row.state[k] = address(columns[k])
			}
		}
		pass := &sparsePass[O, S]{}
		testify.NoError(t, pass.begin(&row))
		pass.kernels, pass.sums = s.arithmetic, s.sums
		pass.h = s.scalarsOf(&o, &stepContext{row: &pass.row[0], log: &pass.log, t: 3, pow: math.Pow})
		size := int(pass.row[0].N)
		ranges := [][2]int{{0, size}}
		if split {
			ranges = splits(random, size)
		}
		for _, at := range ranges {
			pass.Update(engine.Part{Lo: at[0], Hi: at[1]})
		}
		runtime.KeepAlive(grad)
		return slices.Concat(value, columns[0], columns[1], columns[2])
	}
	for range 50 {
		indices, grad := make([]int64, n), make([]float32, n*width)
		for i := range indices {
			indices[i] = random.Int64N(int64(rows))
		}
		for i := range grad {
			grad[i] = float32(random.NormFloat64())
		}
		testify.Equal(t, run(false, indices, grad), run(true, indices, grad))
	}
}
