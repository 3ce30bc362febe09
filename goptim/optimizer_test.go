package goptim_test

import (
	"bytes"
	"math"
	"reflect"
	"runtime"
	"slices"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gonum.org/v1/gonum/floats"
	"gonum.org/v1/gonum/optimize/functions"

	"github.com/goptim/goptim/goptim"
	"github.com/goptim/goptim/internal/steps"
)

// A stepper is any optimizer.
type stepper interface{ Step() error }

// params makes parameters of the sizes, with values and gradients that are the same in every run.
func params[T goptim.Float](sizes ...int) []*goptim.Param[T] {
	all := make([]*goptim.Param[T], len(sizes))
	for k, n := range sizes {
		p := &goptim.Param[T]{Value: make([]T, n), Grad: make([]T, n)}
		for i := range n {
			p.Value[i] = T(math.Sin(float64(i + 3*k)))
			p.Grad[i] = T(math.Cos(float64(5*i + k)))
		}
		all[k] = p
	}
	return all
}

func TestThreadsDoNotChangeBits(t *testing.T) {
	if testing.Short() {
		t.Skip("does not depend on the width of vectors")
	}
	sizes := []int{1, 700_001, 0, 33, 400_000}
	for name, build := range kinds[float32](false) {
		t.Run(name, func(t *testing.T) {
			one := params[float32](sizes...)
			alone, err := build(one)
			require.NoError(t, err)
			setWorkers(alone, 1)
			for _, workers := range []int{2, 3, 8} {
				many := params[float32](sizes...)
				together, err := build(many)
				require.NoError(t, err)
				setWorkers(together, workers)
				for range 3 {
					require.NoError(t, together.Step())
				}
				if workers == 2 {
					for range 3 {
						require.NoError(t, alone.Step())
					}
				}
				for i := range one {
					require.Equal(t, one[i].Value, many[i].Value, "%d workers", workers)
				}
			}
		})
	}
}

// TestNamedTypesOfElements has a program's own type step as what it is made of, and take its state.
func TestNamedTypesOfElements(t *testing.T) {
	t.Run("float32", testNamedType[float32, meters])
	t.Run("float64", testNamedType[float64, seconds])
}

type (
	meters  float32
	seconds float64
)

func testNamedType[T, Named goptim.Float](t *testing.T) {
	named, plain := subjects[Named](), subjects[T]()
	for name := range plain {
		a, b := named[name](t, true), plain[name](t, true)
		a.do(t, 3)
		b.do(t, 3)
		require.Equal(t, encoded(t, b), encoded(t, a), name)
		for i, want := range b.values() {
			for k, x := range a.values()[i] {
				require.Equal(t, want[k], T(x), name)
			}
		}
		require.NoError(t, a.UnmarshalBinary(encoded(t, b)), name)
	}
}

func setWorkers(s stepper, n int) {
	reflect.ValueOf(s).Elem().FieldByName("Workers").SetInt(int64(n))
}

func TestStepAllocatesNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("does not depend on the width of vectors")
	}
	all := map[string]stepper{}
	for name, build := range kinds[float64](true) {
		opt, err := build(params[float64](3, 1000, 600_000))
		require.NoError(t, err)
		all[name] = opt
	}
	for name, stepper := range steppers {
		p := &goptim.SparseParam[float64]{Value: make([]float64, 600_000), Width: 6}
		for i := range 70_000 {
			p.Indices = append(p.Indices, int64(i*7919%100_000))
		}
		p.Grad = slices.Repeat([]float64{1}, len(p.Indices)*p.Width)
		opt, err := stepper.make([]*goptim.SparseParam[float64]{p}, 0)
		require.NoError(t, err)
		all[name] = opt
	}
	matrices := params[float32](64*48, 9*8*3*3, 40_000)
	matrices[0].Shape, matrices[1].Shape = []int{64, 48}, []int{9, 8, 3, 3}
	adafactor, err := goptim.NewAdafactor(matrices, goptim.AdafactorOptions{})
	require.NoError(t, err)
	all["Adafactor of matrices"] = adafactor
	muon, err := goptim.NewMuon(matrices[:1], goptim.MuonOptions{})
	require.NoError(t, err)
	all["Muon"] = muon
	adamW, err := goptim.NewAdamW(matrices[1:], goptim.AdamOptions{})
	require.NoError(t, err)
	all["Groups"], err = goptim.NewGroups(muon, adamW)
	require.NoError(t, err)
	for name, opt := range all {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, opt.Step())
			require.NoError(t, opt.Step())
			allocations := testing.AllocsPerRun(20, func() {
				if err := opt.Step(); err != nil {
					t.Fatal(err)
				}
			})
			if !goptim.RaceDetector { // under which a sync.Pool drops some of what it is given
				assert.Zero(t, allocations)
			}
		})
	}
}

func TestBadParametersChangeNothing(t *testing.T) {
	for name, build := range kinds[float32](false) {
		t.Run(name, func(t *testing.T) {
			_, err := build(nil)
			require.ErrorIs(t, err, goptim.ErrParam)
			_, err = build([]*goptim.Param[float32]{nil})
			require.ErrorIs(t, err, goptim.ErrParam)
			p := params[float32](4)[0]
			_, err = build([]*goptim.Param[float32]{p, p})
			require.ErrorIs(t, err, goptim.ErrParam)

			all := params[float32](4, 5)
			all[1].Name = "bias"
			opt, err := build(all)
			require.NoError(t, err)
			require.NoError(t, opt.Step())
			before := append([]float32(nil), all[0].Value...)
			all[1].Grad = make([]float32, 6)
			err = opt.Step()
			require.ErrorIs(t, err, goptim.ErrParam)
			require.ErrorContains(t, err, "parameter 1 (bias): the gradient has 6 elements, expected 5")
			assert.Equal(t, before, all[0].Value)
			all[1].Value = make([]float32, 6)
			require.ErrorIs(t, opt.Step(), goptim.ErrParam, "the state has another length")
			assert.Equal(t, before, all[0].Value)
		})
	}
}

func TestParametersWithoutGradientStay(t *testing.T) {
	for name, build := range kinds[float32](false) {
		t.Run(name, func(t *testing.T) {
			all := params[float32](4, 5)
			opt, err := build(all)
			require.NoError(t, err)
			all[1].Grad = nil
			before := append([]float32(nil), all[1].Value...)
			require.NoError(t, opt.Step())
			assert.Equal(t, before, all[1].Value)
			assert.NotEqual(t, params[float32](4)[0].Value, all[0].Value)
		})
	}
}

func TestBadOptions(t *testing.T) {
	nan := math.NaN()
	for option, o := range map[string]goptim.AdamOptions{
		"LR is -1":          {LR: -1},
		"LR is NaN":         {LR: nan},
		"Betas[0] is 1,":    {Betas: [2]float64{1, .9}},
		"Betas[1] is -0.1":  {Betas: [2]float64{.9, -.1}},
		"Eps is -1":         {Eps: -1},
		"WeightDecay is -1": {WeightDecay: -1},
	} {
		_, err := goptim.NewAdamW(params[float64](2), o)
		require.ErrorIs(t, err, goptim.ErrOption)
		require.ErrorContains(t, err, "AdamW: "+option)
	}
	for option, o := range map[string]goptim.SGDOptions{
		"LR is NaN":         {LR: nan},
		"Momentum is -1":    {Momentum: -1},
		"WeightDecay is -1": {WeightDecay: -1},
		"Nesterov needs":    {Nesterov: true},
	} {
		_, err := goptim.NewSGD(params[float64](2), o)
		require.ErrorIs(t, err, goptim.ErrOption)
		require.ErrorContains(t, err, "SGD: "+option)
	}
	for message, build := range map[string]func(p []*goptim.Param[float64]) (stepper, error){
		"Adagrad: LRDecay is -1": func(p []*goptim.Param[float64]) (stepper, error) {
			return goptim.NewAdagrad(p, goptim.AdagradOptions{LRDecay: -1})
		},
		"Adagrad: InitialAccumulatorValue is NaN": func(p []*goptim.Param[float64]) (stepper, error) {
			return goptim.NewAdagrad(p, goptim.AdagradOptions{InitialAccumulatorValue: nan})
		},
		"Adadelta: Rho is 1.1, expected at least 0 and at most 1": func(p []*goptim.Param[float64]) (stepper, error) {
			return goptim.NewAdadelta(p, goptim.AdadeltaOptions{Rho: 1.1})
		},
		"Adamax: Betas[1] is 1,": func(p []*goptim.Param[float64]) (stepper, error) {
			return goptim.NewAdamax(p, goptim.AdamaxOptions{Betas: [2]float64{.9, 1}})
		},
		"ASGD: Lambd is -1": func(p []*goptim.Param[float64]) (stepper, error) {
			return goptim.NewASGD(p, goptim.ASGDOptions{Lambd: -1})
		},
		"NAdam: MomentumDecay is -1": func(p []*goptim.Param[float64]) (stepper, error) {
			return goptim.NewNAdam(p, goptim.NAdamOptions{MomentumDecay: -1})
		},
		"RAdam: WeightDecay is -1": func(p []*goptim.Param[float64]) (stepper, error) {
			return goptim.NewRAdam(p, goptim.RAdamOptions{WeightDecay: -1})
		},
		"RMSprop: Alpha is -1": func(p []*goptim.Param[float64]) (stepper, error) {
			return goptim.NewRMSprop(p, goptim.RMSpropOptions{Alpha: -1})
		},
		"Rprop: Etas[1] is 0.9, expected above 1": func(p []*goptim.Param[float64]) (stepper, error) {
			return goptim.NewRprop(p, goptim.RpropOptions{Etas: [2]float64{.5, .9}})
		},
		"Rprop: StepSizes[1] is 0.5, expected at least StepSizes[0]": func(p []*goptim.Param[float64]) (stepper, error) {
			return goptim.NewRprop(p, goptim.RpropOptions{StepSizes: [2]float64{1, .5}})
		},
		"ASGD: T0 is NaN": func(p []*goptim.Param[float64]) (stepper, error) {
			return goptim.NewASGD(p, goptim.ASGDOptions{T0: nan})
		},
		"SGD: Dampening is NaN": func(p []*goptim.Param[float64]) (stepper, error) {
			return goptim.NewSGD(p, goptim.SGDOptions{Dampening: nan})
		},
	} {
		_, err := build(params[float64](2))
		require.ErrorIs(t, err, goptim.ErrOption)
		require.ErrorContains(t, err, message)
	}
	opt, err := goptim.NewAdam(params[float64](2), goptim.AdamOptions{})
	require.NoError(t, err)
	opt.LR = -1
	require.ErrorIs(t, opt.Step(), goptim.ErrOption)
}

// TestOptimizersThatNewHasNotMade are refused: a copy would step by the options of its original.
func TestOptimizersThatNewHasNotMade(t *testing.T) {
	p := params[float64](2)
	opt, err := goptim.NewAdam(p, goptim.AdamOptions{})
	require.NoError(t, err)
	backup := *opt
	require.NoError(t, opt.Step())
	rows := []*goptim.SparseParam[float64]{{Value: make([]float64, 2), Width: 1, Indices: []int64{1}, Grad: []float64{1}}}
	sparse, err := goptim.NewSparseAdam(rows, goptim.SparseAdamOptions{})
	require.NoError(t, err)
	sparseCopy := *sparse
	before := slices.Clone(p[0].Value)
	for _, o := range []goptim.Optimizer{&backup, new(goptim.Adam[float64]), &sparseCopy, new(goptim.SparseSGD[float32])} {
		_, marshaled := o.MarshalBinary()
		_, grouped := goptim.NewGroups(o)
		for _, err := range []error{o.Step(), o.Check(), marshaled, grouped, goptim.WriteState(new(bytes.Buffer), o)} {
			require.ErrorIs(t, err, goptim.ErrParam)
			require.ErrorContains(t, err, "was not made by its New function, or is a copy")
		}
		require.ErrorIs(t, o.UnmarshalBinary(encoded(t, opt)), goptim.ErrState)
	}
	require.Equal(t, before, p[0].Value)
	*opt = backup // which has its options, and states of as many steps
	require.NoError(t, opt.Step())
}

// onHeap holds groups that a call has the addresses of: the stack may move.
var onHeap []steps.Group

// call has a kind step groups of no options but their scalars.
func call(k *steps.Kind, groups ...steps.Group) (int64, error) {
	onHeap = groups
	for i := range groups {
		if groups[i].Count == 0 {
			groups[i].Count = int64(k.Words())
		}
		if i > 0 {
			groups[i-1].Next = uintptr(unsafe.Pointer(&groups[i]))
		}
	}
	n, err := k.Call(uintptr(unsafe.Pointer(unsafe.SliceData(groups))), steps.Call{Threads: 1})
	return n, err
}

// TestCallsThatCannotBe has every kind refuse groups and tables at addresses of no memory.
func TestCallsThatCannotBe(t *testing.T) {
	for _, k := range steps.Kinds() {
		t.Run(k.Name, func(t *testing.T) {
			n, err := call(k, steps.Group{}, steps.Group{})
			require.NoError(t, err)
			require.Zero(t, n)
			for says, g := range map[string]steps.Group{
				"a table of 1 rows at 0x0":    {Rows: 1},
				"a table of 1 rows at 0x1003": {Table: 4099, Rows: 1},
				"a table of -1 rows":          {Table: 4096, Rows: -1},
				"group 1 has 99 scalars":      {Count: 99},
			} {
				_, err := call(k, steps.Group{}, g)
				require.ErrorIs(t, err, steps.ErrCall)
				require.ErrorContains(t, err, says)
			}
			for _, address := range []uintptr{0, 16, 4099, ^uintptr(7)} {
				_, err := k.Call(address, steps.Call{Threads: 1})
				require.ErrorIs(t, err, steps.ErrCall)
			}
			row := make([]uint64, 11, 11+len(k.Name)) // of zeros; on the heap, for its capacity is not known
			_, err = call(k, steps.Group{Table: uintptr(unsafe.Pointer(unsafe.SliceData(row))), Rows: 1})
			runtime.KeepAlive(row)
			require.ErrorIs(t, err, goptim.ErrParam)
		})
	}
	_, err := steps.Find("Madam")
	require.ErrorIs(t, err, steps.ErrCall)
}

// TestMinimizes has every optimizer find minima of gonum's test functions.
func TestMinimizes(t *testing.T) {
	type problem interface {
		Func(x []float64) float64
		Grad(grad, x []float64)
	}
	for name, p := range map[string]struct {
		problem
		start, minimum []float64
		lr             float64
		steps          int
	}{
		"Beale":              {functions.Beale{}, []float64{1, 1}, []float64{3, .5}, .01, 20_000},
		"ExtendedRosenbrock": {functions.ExtendedRosenbrock{}, []float64{-1.2, 1, -1.2, 1}, []float64{1, 1, 1, 1}, .01, 40_000},
	} {
		v := &goptim.Param[float64]{Value: append([]float64(nil), p.start...), Grad: make([]float64, len(p.start))}
		opt, err := goptim.NewAdam([]*goptim.Param[float64]{v}, goptim.AdamOptions{LR: p.lr})
		require.NoError(t, err)
		for range p.steps {
			p.Grad(v.Grad, v.Value)
			require.NoError(t, opt.Step())
		}
		assert.True(t, floats.EqualApprox(p.minimum, v.Value, 1e-3), "%s: %v", name, v.Value)
		assert.Less(t, p.Func(v.Value), 1e-6, name)
	}
}
