package goptim_test

import (
	"bytes"
	"fmt"
	"math"
	"reflect"
	"runtime"
	"slices"
	"strings"
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
		const period = 10_007 // as sines take longer than the tests; a prime, so that no two chunks or vectors are the same
		for i := range n {
			if i < period {
				p.Value[i] = T(math.Sin(float64(i + 3*k)))
				p.Grad[i] = T(math.Cos(float64(5*i + k)))
			} else {
				p.Value[i], p.Grad[i] = p.Value[i-period], p.Grad[i-period]
			}
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
					requireEqual(t, one[i].Value, many[i].Value, "%d workers", workers)
				}
			}
		})
	}
}

// requireEqual is require.Equal for long slices, of which it reads an element in a nanosecond.
func requireEqual[T comparable](t *testing.T, expected, actual []T, format string, args ...any) {
	t.Helper()
	if !slices.Equal(expected, actual) {
		require.Equal(t, expected, actual, append([]any{format}, args...)...)
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
			allocations := testing.AllocsPerRun(5, func() {
				if err := opt.Step(); err != nil {
					t.Fatal(err)
				}
			})
			if !goptim.Detector { // under which a sync.Pool drops some of what it is given
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
			require.NoError(t, opt.Step()) // ADOPT's first step initializes its state
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
			usual := steps.Group{}
			if slices.Contains(k.Options, "norm_type") {
				usual.Scalars[0] = 2
			}
			n, err := call(k, usual, usual)
			require.NoError(t, err)
			require.Zero(t, n)
			for says, g := range map[string]steps.Group{
				"a table of 1 rows at 0x0":    {Rows: 1},
				"a table of 1 rows at 0x1003": {Table: 4099, Rows: 1},
				"a table of -1 rows":          {Table: 4096, Rows: -1},
				"group 1 has 99 scalars":      {Count: 99},
			} {
				_, err := call(k, usual, g)
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

// bounds of options, as errors name them: values that are refused and that are not.
var bounds = map[string]struct{ refused, accepted []float64 }{
	"at least 0":               {[]float64{-1, -math.SmallestNonzeroFloat64, math.NaN()}, []float64{0, .5}},
	"at least 1":               {[]float64{0, math.Nextafter(1, 0), math.NaN()}, []float64{1, 2}},
	"at most 0":                {[]float64{math.SmallestNonzeroFloat64, math.NaN()}, []float64{0, -1}},
	"above 0":                  {[]float64{0, -1, math.NaN()}, []float64{math.SmallestNonzeroFloat64, 1}},
	"above 1":                  {[]float64{1, math.NaN()}, []float64{math.Nextafter(1, 2), 2}},
	"above 0 and below 1":      {[]float64{0, 1, math.NaN()}, []float64{math.SmallestNonzeroFloat64, math.Nextafter(1, 0)}},
	"at least 0 and below 1":   {[]float64{-math.SmallestNonzeroFloat64, 1, math.NaN()}, []float64{0, math.Nextafter(1, 0)}},
	"at least 0 and at most 1": {[]float64{-math.SmallestNonzeroFloat64, math.Nextafter(1, 2), math.NaN()}, []float64{0, 1}},
	"at least StepSizes[0]":    {[]float64{math.Nextafter(1e-6, 0), math.NaN()}, []float64{1e-6, 50}},
	"at least 0 and below 100": {[]float64{-1, 100}, []float64{0, 99}},
	"one of the constants":     {[]float64{-1, 4}, []float64{0, 3}},
	"a number":                 {[]float64{math.NaN()}, []float64{-1, 0, 2}},
	"0 with sparse gradients":  {[]float64{math.SmallestNonzeroFloat64, 1}, []float64{0}},
}

// TestBoundsOfOptions goes up to each bound and beyond.
func TestBoundsOfOptions(t *testing.T) {
	const least, decay = "at least 0", "at least 0 and below 1"
	betas := map[string]string{"LR": least, "Betas[0]": decay, "Betas[1]": decay, "Eps": least, "WeightDecay": least}
	p := params[float64](6)
	p[0].Shape = []int{2, 3}
	rows := []*goptim.SparseParam[float64]{{Value: make([]float64, 6), Width: 3}}
	of := func(opt any, err error) any {
		require.NoError(t, err)
		return opt
	}
	for _, c := range []struct {
		name   string
		opt    any
		limits map[string]string
	}{
		{"Adadelta", of(goptim.NewAdadelta(p, goptim.AdadeltaOptions{})), map[string]string{"LR": least, "Rho": "at least 0 and at most 1", "Eps": least, "WeightDecay": least}},
		{"Adafactor", of(goptim.NewAdafactor(p, goptim.AdafactorOptions{})), map[string]string{"LR": least, "Beta2Decay": "at most 0", "Eps[0]": least, "Eps[1]": least, "D": "at least 1", "WeightDecay": least}},
		{"Adagrad", of(goptim.NewAdagrad(p, goptim.AdagradOptions{})), map[string]string{"LR": least, "LRDecay": least, "WeightDecay": least, "InitialAccumulatorValue": least, "Eps": least}},
		{"Adam", of(goptim.NewAdam(p, goptim.AdamOptions{})), betas},
		{"AdamW", of(goptim.NewAdamW(p, goptim.AdamOptions{})), betas},
		{"Adamax", of(goptim.NewAdamax(p, goptim.AdamaxOptions{})), betas},
		{"ASGD", of(goptim.NewASGD(p, goptim.ASGDOptions{})), map[string]string{"LR": least, "Lambd": least, "Alpha": least, "T0": "a number", "WeightDecay": least}},
		{"LBFGS", of(goptim.NewLBFGS(p, goptim.LBFGSOptions{})), map[string]string{"LR": least, "MaxIter": "at least 1", "MaxEval": "at least 1", "HistorySize": "at least 1"}},
		{"Muon", of(goptim.NewMuon(p, goptim.MuonOptions{})), map[string]string{"LR": least, "WeightDecay": least, "Momentum": least, "Eps": least, "NSSteps": "at least 0 and below 100", "AdjustLR": "one of the constants"}},
		{"NAdam", of(goptim.NewNAdam(p, goptim.NAdamOptions{})), betas},
		{"NAdam", of(goptim.NewNAdam(p, goptim.NAdamOptions{})), map[string]string{"MomentumDecay": least}},
		{"RAdam", of(goptim.NewRAdam(p, goptim.RAdamOptions{})), betas},
		{"RMSprop", of(goptim.NewRMSprop(p, goptim.RMSpropOptions{})), map[string]string{"LR": least, "Alpha": least, "Eps": least, "WeightDecay": least, "Momentum": least}},
		{"Rprop", of(goptim.NewRprop(p, goptim.RpropOptions{})), map[string]string{"LR": least, "Etas[0]": "above 0 and below 1", "Etas[1]": "above 1", "StepSizes[0]": least, "StepSizes[1]": "at least StepSizes[0]"}},
		{"SGD", of(goptim.NewSGD(p, goptim.SGDOptions{})), map[string]string{"LR": least, "Momentum": least, "Dampening": "a number", "WeightDecay": least}},
		{"SparseAdagrad", of(goptim.NewSparseAdagrad(rows, goptim.AdagradOptions{})), map[string]string{"WeightDecay": "0 with sparse gradients"}},
		{"SparseAdam", of(goptim.NewSparseAdam(rows, goptim.SparseAdamOptions{})), map[string]string{"LR": "above 0", "Betas[0]": decay, "Betas[1]": decay, "Eps": "above 0"}},
		{"SparseSGD", of(goptim.NewSparseSGD(rows, goptim.SGDOptions{})), map[string]string{"Momentum": "0 with sparse gradients", "WeightDecay": "0 with sparse gradients"}},
	} {
		for option, limit := range c.limits {
			name, index, _ := strings.Cut(strings.TrimSuffix(option, "]"), "[")
			field := reflect.ValueOf(c.opt).Elem().FieldByName(name)
			if index != "" {
				field = field.Index(int(index[0] - '0'))
			}
			good := reflect.ValueOf(field.Interface())
			set := func(x float64) bool { // false for what the option cannot be
				to := reflect.ValueOf(x).Convert(field.Type())
				field.Set(to)
				return to.Convert(reflect.TypeOf(x)).Float() == x || math.IsNaN(x) && field.Kind() == reflect.Float64
			}
			check := c.opt.(interface{ Check() error }).Check
			for _, x := range bounds[limit].refused {
				if set(x) {
					err := check()
					require.ErrorIs(t, err, goptim.ErrOption, "%s: %s is %v", c.name, option, x)
					require.ErrorContains(t, err, fmt.Sprintf("goptim: %s: %s is %v, expected %s: ", c.name, option, x, limit))
				}
			}
			for _, x := range bounds[limit].accepted {
				set(x)
				require.NoError(t, check(), "%s: %s is %v", c.name, option, x)
			}
			field.Set(good)
		}
	}
}

// TestDefaults are torch's, and take the place of zeros alone.
func TestDefaults(t *testing.T) {
	p := params[float64](6)
	p[0].Shape = []int{2, 3}
	rows := []*goptim.SparseParam[float64]{{Value: make([]float64, 6), Width: 3}}
	betas := [2]float64{.9, .999}
	check := func(opt any, err error) func(want any) {
		return func(want any) {
			t.Helper()
			require.NoError(t, err)
			assert.Equal(t, want, reflect.ValueOf(opt).Elem().FieldByName(reflect.TypeOf(want).Name()).Interface())
		}
	}
	check(goptim.NewAdadelta(p, goptim.AdadeltaOptions{}))(goptim.AdadeltaOptions{LR: 1, Rho: .9, Eps: 1e-6})
	check(goptim.NewAdafactor(p, goptim.AdafactorOptions{}))(goptim.AdafactorOptions{LR: 1e-2, Beta2Decay: -.8, Eps: [2]float64{0x1p-52, 1e-3}, D: 1})
	check(goptim.NewAdagrad(p, goptim.AdagradOptions{}))(goptim.AdagradOptions{LR: 1e-2, Eps: 1e-10})
	check(goptim.NewAdam(p, goptim.AdamOptions{}))(goptim.AdamOptions{LR: 1e-3, Betas: betas, Eps: 1e-8})
	check(goptim.NewAdamW(p, goptim.AdamOptions{}))(goptim.AdamOptions{LR: 1e-3, Betas: betas, Eps: 1e-8, DecoupledWeightDecay: true})
	check(goptim.NewAMSGrad(p, goptim.AdamOptions{}))(goptim.AdamOptions{LR: 1e-3, Betas: betas, Eps: 1e-8, AMSGrad: true})
	check(goptim.NewAdamax(p, goptim.AdamaxOptions{}))(goptim.AdamaxOptions{LR: 2e-3, Betas: betas, Eps: 1e-8})
	check(goptim.NewASGD(p, goptim.ASGDOptions{}))(goptim.ASGDOptions{LR: 1e-2, Alpha: .75, T0: 1e6})
	check(goptim.NewLBFGS(p, goptim.LBFGSOptions{}))(goptim.LBFGSOptions{LR: 1, MaxIter: 20, MaxEval: 25, ToleranceGrad: 1e-7, ToleranceChange: 1e-9, HistorySize: 100})
	check(goptim.NewMuon(p, goptim.MuonOptions{}))(goptim.MuonOptions{LR: 1e-3, Momentum: .95, NSCoefficients: [3]float64{3.4445, -4.775, 2.0315}, Eps: 1e-7, NSSteps: 5})
	check(goptim.NewNAdam(p, goptim.NAdamOptions{}))(goptim.NAdamOptions{LR: 2e-3, Betas: betas, Eps: 1e-8})
	check(goptim.NewRAdam(p, goptim.RAdamOptions{}))(goptim.RAdamOptions{LR: 1e-3, Betas: betas, Eps: 1e-8})
	check(goptim.NewRMSprop(p, goptim.RMSpropOptions{}))(goptim.RMSpropOptions{LR: 1e-2, Alpha: .99, Eps: 1e-8})
	check(goptim.NewRprop(p, goptim.RpropOptions{}))(goptim.RpropOptions{LR: 1e-2, Etas: [2]float64{.5, 1.2}, StepSizes: [2]float64{1e-6, 50}})
	check(goptim.NewSGD(p, goptim.SGDOptions{}))(goptim.SGDOptions{LR: 1e-3})
	check(goptim.NewSparseAdagrad(rows, goptim.AdagradOptions{}))(goptim.AdagradOptions{LR: 1e-2, Eps: 1e-10})
	check(goptim.NewSparseAdam(rows, goptim.SparseAdamOptions{}))(goptim.SparseAdamOptions{LR: 1e-3, Betas: betas, Eps: 1e-8})
	check(goptim.NewSparseSGD(rows, goptim.SGDOptions{}))(goptim.SGDOptions{LR: 1e-3})

	// Every option but zeros stays.
	two := [2]float64{.25, .75}
	adadelta := goptim.AdadeltaOptions{LR: .5, Rho: .25, Eps: .125}
	check(goptim.NewAdadelta(p, adadelta))(adadelta)
	adafactor := goptim.AdafactorOptions{LR: .5, Beta2Decay: -.25, Eps: two, D: 2}
	check(goptim.NewAdafactor(p, adafactor))(adafactor)
	adagrad := goptim.AdagradOptions{LR: .5, Eps: .25}
	check(goptim.NewAdagrad(p, adagrad))(adagrad)
	check(goptim.NewSparseAdagrad(rows, adagrad))(adagrad)
	adam := goptim.AdamOptions{LR: .5, Betas: two, Eps: .125}
	check(goptim.NewAdam(p, adam))(adam)
	adamax := goptim.AdamaxOptions{LR: .5, Betas: two, Eps: .125}
	check(goptim.NewAdamax(p, adamax))(adamax)
	asgd := goptim.ASGDOptions{LR: .5, Alpha: .25, T0: 3}
	check(goptim.NewASGD(p, asgd))(asgd)
	lbfgs := goptim.LBFGSOptions{LR: .5, MaxIter: 3, MaxEval: 4, ToleranceGrad: .25, ToleranceChange: .125, HistorySize: 5}
	check(goptim.NewLBFGS(p, lbfgs))(lbfgs)
	muon := goptim.MuonOptions{LR: .5, Momentum: .25, NSCoefficients: [3]float64{1, 2, 3}, Eps: .125, NSSteps: 2}
	check(goptim.NewMuon(p, muon))(muon)
	nadam := goptim.NAdamOptions{LR: .5, Betas: two, Eps: .125}
	check(goptim.NewNAdam(p, nadam))(nadam)
	radam := goptim.RAdamOptions{LR: .5, Betas: two, Eps: .125}
	check(goptim.NewRAdam(p, radam))(radam)
	rmsprop := goptim.RMSpropOptions{LR: .5, Alpha: .25, Eps: .125}
	check(goptim.NewRMSprop(p, rmsprop))(rmsprop)
	rprop := goptim.RpropOptions{LR: .5, Etas: [2]float64{.25, 3}, StepSizes: [2]float64{.125, 4}}
	check(goptim.NewRprop(p, rprop))(rprop)
	check(goptim.NewSGD(p, goptim.SGDOptions{LR: .5}))(goptim.SGDOptions{LR: .5})
	sparse := goptim.SparseAdamOptions{LR: .5, Betas: two, Eps: .125}
	check(goptim.NewSparseAdam(rows, sparse))(sparse)
	check(goptim.NewSparseSGD(rows, goptim.SGDOptions{LR: .5}))(goptim.SGDOptions{LR: .5})
}
