package goptim_test

import (
	"encoding/json"
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/goptim/goptim/goptim"
)

// A constructor is a New function. Q is goptim.Param or goptim.SparseParam.
type constructor[Q any] struct {
	name string // the function's name without New
	// build returns an optimizer whose options are set by edit, which is called with a pointer to zero options.
	build func(params []*Q, edit func(options any)) (goptim.Optimizer, error)
	// usual are options for tests. In unusual, every option that a state depends on has a different value.
	usual, unusual any
}

// entry returns the constructor of a New function, with the options of specialOptions or those that follow from the tags.
func entry[Q, O any, P goptim.Optimizer](name string, build func([]*Q, O) (P, error)) constructor[Q] {
	var usual, unusual any = *new(O), goptim.UnusualOptions[O]()
	if special, ok := specialOptions[name]; ok {
		usual, unusual = special[0], special[1]
	}
	return constructor[Q]{name, func(params []*Q, edit func(any)) (goptim.Optimizer, error) {
		var o O
		edit(&o)
		p, err := build(params, o)
		if err != nil {
			return nil, err
		}
		if s, ok := any(p).(interface{ Train() error }); ok {
			err = s.Train()
		}
		return p, err
	}, usual, unusual}
}

func (c constructor[Q]) with(params []*Q, options any) (goptim.Optimizer, error) {
	return c.build(params, func(o any) { reflect.ValueOf(o).Elem().Set(reflect.ValueOf(options)) })
}

// specialOptions are the usual and the unusual options of New functions where flags decide which states there are, or a value
// must be valid together with others.
var specialOptions = map[string][2]any{
	"SGD": {
		goptim.SGDOptions{Dampening: .5, WeightDecay: .1},
		goptim.SGDOptions{Momentum: .8, Dampening: .5, WeightDecay: .1, Maximize: true},
	},
	"Adam": {
		goptim.AdamOptions{}, goptim.AdamOptions{LR: .1, Betas: [2]float64{.7, .8}, Eps: 1e-3},
	},
	"AdamW": {
		goptim.AdamOptions{}, goptim.AdamOptions{WeightDecay: .1, Maximize: true},
	},
	"AMSGrad": {
		goptim.AdamOptions{}, goptim.AdamOptions{WeightDecay: .1},
	},
	"Adafactor": {
		goptim.AdafactorOptions{},
		goptim.AdafactorOptions{Beta2Decay: -.5, D: 2, Eps: [2]float64{1e-4, 1e-2}},
	},
	"Prodigy": {
		goptim.ProdigyOptions{D0: .01, SliceP: 3, Decouple: true, WeightDecay: .1},
		goptim.ProdigyOptions{LR: .5, Betas: [2]float64{.7, .8}, D0: .1, UseBiasCorrection: true, GrowthRate: 1.1, WeightDecay: .1},
	},
	"ASGD": {
		goptim.ASGDOptions{}, goptim.ASGDOptions{Lambd: .1, T0: 1, Alpha: .5},
	},
	"NAdam": {
		goptim.NAdamOptions{WeightDecay: .1},
		goptim.NAdamOptions{MomentumDecay: .1, WeightDecay: .1, DecoupledWeightDecay: true},
	},
	"RAdam": {
		goptim.RAdamOptions{WeightDecay: .1},
		goptim.RAdamOptions{Betas: [2]float64{.7, .8}, WeightDecay: .1, DecoupledWeightDecay: true},
	},
	"RMSprop": {
		goptim.RMSpropOptions{}, goptim.RMSpropOptions{Alpha: .5, Momentum: .5, Centered: true},
	},
	"Rprop": {
		goptim.RpropOptions{StepSizes: [2]float64{0, math.Inf(1)}},
		goptim.RpropOptions{Etas: [2]float64{.3, 1.5}, StepSizes: [2]float64{0, math.Inf(1)}},
	},
	"SGDW": {
		goptim.SGDWOptions{Dampening: .5, WeightDecay: .1},
		goptim.SGDWOptions{Momentum: .8, Dampening: .5, WeightDecay: .1, CorrectedWeightDecay: true, Maximize: true},
	},
	"LAMB": {
		goptim.LAMBOptions{WeightDecay: .1, MaxGradNorm: .5},
		goptim.LAMBOptions{Betas: [2]float64{.7, .8}, BiasCorrection: true, GradAveraging: true, WeightDecay: .1, DecoupledDecay: true},
	},
	"LARS": {
		goptim.LARSOptions{WeightDecay: .1}, goptim.LARSOptions{Momentum: .8, Dampening: .5, WeightDecay: .1, TrustClip: true},
	},
	"RMSpropTF": {
		goptim.RMSpropTFOptions{}, goptim.RMSpropTFOptions{Alpha: .5, Momentum: .5, Centered: true, LRInMomentum: true},
	},
	"OptimiAdam": {
		goptim.OptimiAdamOptions{WeightDecay: .1}, goptim.OptimiAdamOptions{Beta1: .7, Beta2: .8, WeightDecay: .1, DecoupleLR: true},
	},
	"OptimiAdamW": {
		goptim.OptimiAdamOptions{WeightDecay: .1}, goptim.OptimiAdamOptions{LR: .1, Eps: 1e-3, WeightDecay: .1, DecoupleLR: true},
	},
	"OptimiSGD": {
		goptim.OptimiSGDOptions{WeightDecay: .1},
		goptim.OptimiSGDOptions{Momentum: .8, Dampening: true, WeightDecay: .1, DecoupleWD: true, TorchInit: true},
	},
	"Muon": {
		goptim.MuonOptions{NSSteps: 2},
		goptim.MuonOptions{Momentum: .5, Nesterov: true, AdjustLR: goptim.AdjustSpectralUnclamped, NSSteps: 2},
	},
	"SparseAdam": {
		goptim.SparseAdamOptions{},
		goptim.SparseAdamOptions{Betas: [2]float64{.7, .8}, Maximize: true},
	},
	"SparseSGD": {
		goptim.SGDOptions{}, goptim.SGDOptions{LR: .1, Maximize: true},
	},
	"SparseAdagrad": {
		goptim.AdagradOptions{},
		goptim.AdagradOptions{LRDecay: .1, InitialAccumulatorValue: .3},
	},
}

// sparseConstructors returns the New functions of sparse gradients.
func sparseConstructors[T goptim.Element]() []constructor[goptim.SparseParam[T]] {
	return []constructor[goptim.SparseParam[T]]{
		entry("SparseAdam", goptim.NewSparseAdam[T]),
		entry("SparseSGD", goptim.NewSparseSGD[T]),
		entry("SparseAdagrad", goptim.NewSparseAdagrad[T]),
	}
}

// kinds returns functions that build the optimizers that accept any parameters: the elementwise ones and, with factored,
// Adafactor.
func kinds[T goptim.Float](factored bool) map[string]func([]*goptim.Param[T]) (stepper, error) {
	all := map[string]func([]*goptim.Param[T]) (stepper, error){}
	for _, c := range constructors[T]() {
		if c.name != "Muon" && (factored || c.name != "Adafactor") {
			all[c.name] = func(p []*goptim.Param[T]) (stepper, error) { return c.with(p, c.unusual) }
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
	require.Fail(t, class+" is not in goptim/constructors_test.go: run `make generate`")
	return nil
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
	options := reflect.TypeOf(c.unusual)
	for i := range options.NumField() {
		member := options.Field(i)
		name := member.Name
		edit := func(o any) { reflect.ValueOf(o).Elem().Field(i).SetFloat(math.NaN()) }
		switch {
		case member.Tag.Get("range") == "" || member.Tag.Get("range") == "-":
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
