package goptim

import (
	"errors"
	"math"
	"sync"

	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// RpropOptions are the hyperparameters of Rprop.
type RpropOptions struct {
	LR        float64    // the first step size, ≥ 0; New takes 0 as 1e-2
	Etas      [2]float64 // factors that shrink and grow a step size, 0 < Etas[0] < 1 < Etas[1]; New takes {0, 0} as {0.5, 1.2}
	StepSizes [2]float64 // the smallest and the largest step size; New takes {0, 0} as {1e-6, 50}
	Maximize  bool
}

// Rprop is the optimizer of Riedmiller & Braun, "A Direct Adaptive Method for Faster Backpropagation Learning: The RPROP
// Algorithm", ICNN 1993, in the form that undoes no step. Its bits are those of torch.optim.Rprop.
type Rprop[T Float] struct {
	RpropOptions     // as the next Step uses them
	Workers      int // as many threads as a Step may use; 0 means GOMAXPROCS
	base         base[T, kernel.Rprop]
}

// NewRprop makes an Rprop of params. The error wraps ErrOption or ErrParam.
func NewRprop[T Float](params []*Param[T], o RpropOptions) (*Rprop[T], error) {
	if o.LR == 0 {
		o.LR = 1e-2
	}
	if o.Etas == [2]float64{} {
		o.Etas = [2]float64{0.5, 1.2}
	}
	if o.StepSizes == [2]float64{} {
		o.StepSizes = [2]float64{1e-6, 50}
	}
	b, err := newBase(&o, params)
	if err != nil {
		return nil, err
	}
	return &Rprop[T]{RpropOptions: o, base: b}, nil
}

// Check reports what Step would refuse now.
func (r *Rprop[T]) Check() error { return r.base.checkAll(&r.RpropOptions) }

// MarshalBinary encodes options and state: see Stateful.
func (r *Rprop[T]) MarshalBinary() ([]byte, error) { return marshal(r) }

// UnmarshalBinary takes options and state: see Stateful.
func (r *Rprop[T]) UnmarshalBinary(data []byte) error { return unmarshal(r, data) }

func (r *Rprop[T]) groups() []group { return groupOf(&r.base, &r.RpropOptions) }

// Step updates every parameter that has a gradient. On an error that wraps ErrOption or ErrParam nothing has changed.
func (r *Rprop[T]) Step() error { return r.base.step(&r.RpropOptions, r.Workers) }

// StepTable runs one step over a table whose states are prev and step_size. It takes the options
// unchecked, as torch's step does. On an error that wraps ErrParam nothing has changed.
func (o RpropOptions) StepTable(t Table) error { return o.stepTables([]RpropOptions{o}, []Table{t}) }

func (RpropOptions) stepTables(o []RpropOptions, t []Table) error {
	return stepTables[kernel.Rprop](&rpropPasses, o, t)
}

var rpropPasses sync.Pool

func (o *RpropOptions) name() string { return "Rprop" }

func (o *RpropOptions) check() error {
	return errors.Join(
		require(o.LR >= 0, "Rprop", "LR", o.LR, "at least 0"),
		require(o.Etas[0] > 0 && o.Etas[0] < 1, "Rprop", "Etas[0]", o.Etas[0], "above 0 and below 1"),
		require(o.Etas[1] > 1, "Rprop", "Etas[1]", o.Etas[1], "above 1"),
		require(o.StepSizes[0] >= 0, "Rprop", "StepSizes[0]", o.StepSizes[0], "at least 0"),
		require(o.StepSizes[1] >= o.StepSizes[0], "Rprop", "StepSizes[1]", o.StepSizes[1], "at least StepSizes[0]"),
	)
}

func (o *RpropOptions) options() []option {
	return []option{
		{"lr", (*number)(&o.LR)},
		{"etas", tupleOf(o.Etas[:])},
		{"step_sizes", tupleOf(o.StepSizes[:])},
		{"maximize", &o.Maximize},
	}
}

func (o *RpropOptions) keys() [engine.States]stateKey {
	return [engine.States]stateKey{{name: "prev"}, {name: "step_size"}}
}

func (o *RpropOptions) layout() engine.Layout {
	return engine.Layout{Counts: true, State: [engine.States]engine.Use{engine.Column, engine.Column}}
}

func (o *RpropOptions) initial(state int) float64 {
	if state == 1 {
		return o.LR
	}
	return 0
}

func (o *RpropOptions) scalars(n *now) kernel.Rprop {
	n.narrow(o.Etas[1])
	h := rpropFactors[float64](n.narrow(o.Etas[0]), o.Etas[1])
	if n.row.DType() == engine.Float32 {
		h = rpropFactors[float32](o.Etas[0], o.Etas[1])
	}
	h.Sign = kernel.Sign(o.Maximize)
	h.Min, h.Max = n.narrow(o.StepSizes[0]), n.narrow(o.StepSizes[1])
	if math.IsNaN(h.Min) || math.IsNaN(h.Max) {
		h.Unusual = 1
	}
	return h
}

// rpropFactors are the factors of a step size. torch assigns them to a tensor of signs one after the other: a negative
// etaplus is replaced by etaminus, and a zero by 1.
func rpropFactors[T Float](etaMinus, etaPlus float64) kernel.Rprop {
	minus, plus := T(etaMinus), T(etaPlus)
	if plus < 0 {
		plus = minus
	}
	if plus == 0 {
		plus = 1
	}
	h := kernel.Rprop{EtaMinus: float64(minus), Plus: float64(plus), Minus: float64(minus)}
	if minus == 0 {
		h.Minus = 1
	}
	h.Unusual = kernel.Flag(minus == 0 || minus == 1 || minus == plus || minus != minus)
	return h
}

func (o *RpropOptions) kernels() kernels[kernel.Rprop] {
	return kernels[kernel.Rprop]{f32.Rprop, f64.Rprop}
}
