package goptim_test

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/goptim/goptim/goptim"
	"github.com/goptim/goptim/internal/steps"
)

// A constructor is a New function. Q is goptim.Param or goptim.SparseParam.
type constructor[Q any] struct {
	name string // the function's name without New
	// build returns an optimizer whose options are set by edit, which is called with a pointer to zero options.
	build func(params []*Q, edit func(options any)) (goptim.Optimizer, error)
	// usual are options for tests. In odd, every option that a state depends on has a different value.
	usual, odd any
}

func entry[Q, O any, P goptim.Optimizer](name string, build func([]*Q, O) (P, error), usual, odd O) constructor[Q] {
	return constructor[Q]{name, func(params []*Q, edit func(any)) (goptim.Optimizer, error) {
		var o O
		edit(&o)
		p, err := build(params, o)
		if err != nil {
			return nil, err
		}
		return p, nil
	}, usual, odd}
}

func (c constructor[Q]) with(params []*Q, options any) (goptim.Optimizer, error) {
	return c.build(params, func(o any) { reflect.ValueOf(o).Elem().Set(reflect.ValueOf(options)) })
}

// constructors returns the New functions of dense gradients, except LBFGS's. TestRegistry fails if one is missing.
func constructors[T goptim.Float]() []constructor[goptim.Param[T]] {
	betas := [2]float64{.7, .8}
	return []constructor[goptim.Param[T]]{
		entry("SGD", goptim.NewSGD[T], goptim.SGDOptions{Dampening: .5, WeightDecay: .1},
			goptim.SGDOptions{Momentum: .8, Dampening: .5, WeightDecay: .1, Maximize: true}),
		entry("Adam", goptim.NewAdam[T], goptim.AdamOptions{}, goptim.AdamOptions{LR: .1, Betas: betas, Eps: 1e-3}),
		entry("AdamW", goptim.NewAdamW[T], goptim.AdamOptions{}, goptim.AdamOptions{WeightDecay: .1, Maximize: true}),
		entry("AMSGrad", goptim.NewAMSGrad[T], goptim.AdamOptions{}, goptim.AdamOptions{WeightDecay: .1}),
		entry("Adagrad", goptim.NewAdagrad[T], goptim.AdagradOptions{},
			goptim.AdagradOptions{LRDecay: .1, InitialAccumulatorValue: .1, Eps: 1e-3}),
		entry("Adadelta", goptim.NewAdadelta[T], goptim.AdadeltaOptions{}, goptim.AdadeltaOptions{Rho: .5, Eps: 1e-3, WeightDecay: .1}),
		entry("Adafactor", goptim.NewAdafactor[T], goptim.AdafactorOptions{},
			goptim.AdafactorOptions{Beta2Decay: -.5, D: 2, Eps: [2]float64{1e-4, 1e-2}}),
		entry("Adamax", goptim.NewAdamax[T], goptim.AdamaxOptions{}, goptim.AdamaxOptions{Betas: betas, WeightDecay: .1}),
		entry("ASGD", goptim.NewASGD[T], goptim.ASGDOptions{}, goptim.ASGDOptions{Lambd: .1, T0: 1, Alpha: .5}),
		entry("NAdam", goptim.NewNAdam[T], goptim.NAdamOptions{WeightDecay: .1},
			goptim.NAdamOptions{MomentumDecay: .1, WeightDecay: .1, DecoupledWeightDecay: true}),
		entry("RAdam", goptim.NewRAdam[T], goptim.RAdamOptions{WeightDecay: .1},
			goptim.RAdamOptions{Betas: betas, WeightDecay: .1, DecoupledWeightDecay: true}),
		entry("RMSprop", goptim.NewRMSprop[T], goptim.RMSpropOptions{}, goptim.RMSpropOptions{Alpha: .5, Momentum: .5, Centered: true}),
		entry("Rprop", goptim.NewRprop[T], goptim.RpropOptions{StepSizes: [2]float64{0, math.Inf(1)}},
			goptim.RpropOptions{Etas: [2]float64{.3, 1.5}, StepSizes: [2]float64{0, math.Inf(1)}}),
		entry("Muon", goptim.NewMuon[T], goptim.MuonOptions{NSSteps: 2},
			goptim.MuonOptions{Momentum: .5, Nesterov: true, AdjustLR: goptim.AdjustSpectralUnclamped, NSSteps: 2}),
	}
}

// sparseConstructors returns the New functions of sparse gradients.
func sparseConstructors[T goptim.Float]() []constructor[goptim.SparseParam[T]] {
	return []constructor[goptim.SparseParam[T]]{
		entry("SparseAdam", goptim.NewSparseAdam[T], goptim.SparseAdamOptions{},
			goptim.SparseAdamOptions{Betas: [2]float64{.7, .8}, Maximize: true}),
		entry("SparseSGD", goptim.NewSparseSGD[T], goptim.SGDOptions{}, goptim.SGDOptions{LR: .1, Maximize: true}),
		entry("SparseAdagrad", goptim.NewSparseAdagrad[T], goptim.AdagradOptions{},
			goptim.AdagradOptions{LRDecay: .1, InitialAccumulatorValue: .3}),
	}
}

// kinds returns functions that build the optimizers that accept any parameters: the elementwise ones and, with factored,
// Adafactor.
func kinds[T goptim.Float](factored bool) map[string]func([]*goptim.Param[T]) (stepper, error) {
	all := map[string]func([]*goptim.Param[T]) (stepper, error){}
	for _, c := range constructors[T]() {
		if c.name != "Muon" && (factored || c.name != "Adafactor") {
			all[c.name] = func(p []*goptim.Param[T]) (stepper, error) { return c.with(p, c.odd) }
		}
	}
	return all
}

// golden returns a function that builds an optimizer of a torch class from options in JSON with the names of the Go
// fields.
func golden[T goptim.Float](t *testing.T, class string, options []byte) func([]*goptim.Param[T]) (stepper, error) {
	for _, c := range constructors[T]() {
		if c.name == class {
			return func(p []*goptim.Param[T]) (stepper, error) {
				return c.build(p, func(o any) {
					d := json.NewDecoder(strings.NewReader(string(options)))
					d.DisallowUnknownFields()
					require.NoError(t, d.Decode(o))
				})
			}
		}
	}
	require.Fail(t, class+" is not among the constructors of goptim/registry_test.go")
	return nil
}

// TestRegistry checks that every optimizer has a constructor in the tests' lists, an example and a method for gonum.
func TestRegistry(t *testing.T) {
	listed := map[string]bool{"LBFGS": true, "Groups": true}
	for _, c := range constructors[float32]() {
		listed[c.name] = true
	}
	for _, c := range sparseConstructors[float32]() {
		listed[c.name] = true
	}
	runs, cases := map[string]bool{}, map[string]bool{}
	paths, err := filepath.Glob("testdata/torch/*")
	require.NoError(t, err)
	for _, path := range paths {
		runs[strings.TrimPrefix(readRun(t, path).class, "Sparse")] = true
	}
	for _, c := range readGolden(t).Cases {
		cases[c.Optimizer] = true
	}
	functions, methods := functionsOf(t, "."), functionsOf(t, "gonumopt")
	for _, name := range functions {
		if class, ok := strings.CutPrefix(name, "New"); ok {
			if class != "LBFGS" && class != "Groups" && !strings.HasPrefix(class, "Sparse") {
				assert.Contains(t, methods, class, "a method of gonum's is missing in goptim/gonumopt/methods.go")
			}
			assert.True(t, listed[class], "New%s is missing in constructors or sparseConstructors, in goptim/registry_test.go", class)
			assert.Contains(t, functions, "ExampleNew"+class, "an Example is missing in goptim/example_test.go")
		}
	}
	for _, k := range steps.Kinds() {
		for class := range k.Classes {
			if class != "HFAdafactor" && !strings.HasPrefix(class, "Muon") {
				assert.Contains(t, functions, "New"+class, "%s is registered and has no constructor", class)
				assert.True(t, runs[strings.TrimPrefix(class, "Sparse")], "a run of %s is missing in RUNS of tests/golden.py", class)
				if !k.Sparse {
					assert.True(t, cases[class], "a case of %s is missing in tests/golden.py", class)
				}
			}
		}
	}
}

// functionsOf returns the exported functions of a folder, including those of tests.
func functionsOf(t *testing.T, folder string) (all []string) {
	paths, err := filepath.Glob(filepath.Join(folder, "*.go"))
	require.NoError(t, err)
	for _, path := range paths {
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		for _, m := range regexp.MustCompile(`(?m)^func ([A-Z]\w*)[\[(]`).FindAllStringSubmatch(string(text), -1) {
			all = append(all, m[1])
		}
	}
	return all
}

// TestOptionsThatAreNoNumbers checks that NaN is rejected for every option with a range, with the option's name in the
// error.
func TestOptionsThatAreNoNumbers(t *testing.T) {
	for _, c := range constructors[float64]() {
		testNoNumbers(t, c, matrices[float64])
	}
	for _, c := range sparseConstructors[float64]() {
		testNoNumbers(t, c, func() []*goptim.SparseParam[float64] {
			return []*goptim.SparseParam[float64]{{Value: make([]float64, 6), Width: 2}}
		})
	}
}

func matrices[T goptim.Float]() []*goptim.Param[T] {
	p := params[T](6)
	p[0].Shape = []int{2, 3}
	return p
}

func testNoNumbers[Q any](t *testing.T, c constructor[Q], params func() []*Q) {
	options := reflect.TypeOf(c.odd)
	for i := range options.NumField() {
		member := options.Field(i)
		name := member.Name
		edit := func(o any) { reflect.ValueOf(o).Elem().Field(i).SetFloat(math.NaN()) }
		switch {
		case member.Tag.Get("range") == "":
			continue
		case member.Type.Kind() == reflect.Array:
			name += "[0]"
			edit = func(o any) { reflect.ValueOf(o).Elem().Field(i).Index(0).SetFloat(math.NaN()) }
		case member.Type.Kind() != reflect.Float64:
			continue
		}
		_, err := c.build(params(), edit)
		require.ErrorIs(t, err, goptim.ErrOption, "%s: %s", c.name, name)
		require.ErrorContains(t, err, ": "+name+" is NaN, expected ")
	}
}
