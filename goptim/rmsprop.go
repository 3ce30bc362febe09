package goptim

import (
	"errors"
	"sync"

	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// RMSpropOptions are the hyperparameters of RMSprop.
type RMSpropOptions struct {
	LR          float64 // learning rate, ≥ 0; New takes 0 as 1e-2
	Alpha       float64 // decay rate of the average of squares, ≥ 0; New takes 0 as 0.99
	Eps         float64 // added to the denominator, ≥ 0; New takes 0 as 1e-8
	WeightDecay float64 // added to the gradient, times the parameter; ≥ 0
	Momentum    float64 // decay of the momentum buffer, ≥ 0; 0 keeps no buffer
	Centered    bool    // divide by the deviation from the average gradient
	Maximize    bool
}

// RMSprop is the optimizer of Tieleman & Hinton, "Lecture 6.5", COURSERA: Neural Networks for Machine Learning (2012);
// Centered, of Graves, "Generating Sequences With Recurrent Neural Networks", arXiv:1308.0850; eps is added to the root,
// as torch does. Its bits are those of torch.optim.RMSprop.
type RMSprop[T Float] struct {
	RMSpropOptions     // as the next Step uses them
	Workers        int // as many threads as a Step may use; 0 means GOMAXPROCS
	base           base[T, kernel.RMSprop]
}

// NewRMSprop makes an RMSprop of params. The error wraps ErrOption or ErrParam.
func NewRMSprop[T Float](params []*Param[T], o RMSpropOptions) (*RMSprop[T], error) {
	if o.LR == 0 {
		o.LR = 1e-2
	}
	if o.Alpha == 0 {
		o.Alpha = 0.99
	}
	if o.Eps == 0 {
		o.Eps = 1e-8
	}
	b, err := newBase(&o, params)
	if err != nil {
		return nil, err
	}
	return &RMSprop[T]{RMSpropOptions: o, base: b}, nil
}

// Check reports what Step would refuse now.
func (r *RMSprop[T]) Check() error { return r.base.checkAll(&r.RMSpropOptions) }

// MarshalBinary encodes options and state: see Stateful.
func (r *RMSprop[T]) MarshalBinary() ([]byte, error) { return marshal(r) }

// UnmarshalBinary takes options and state: see Stateful.
func (r *RMSprop[T]) UnmarshalBinary(data []byte) error { return unmarshal(r, data) }

func (r *RMSprop[T]) groups() []group { return groupOf(&r.base, &r.RMSpropOptions) }

// Step updates every parameter that has a gradient. On an error that wraps ErrOption or ErrParam nothing has changed.
func (r *RMSprop[T]) Step() error { return r.base.step(&r.RMSpropOptions, r.Workers) }

// StepTable runs one step over a table whose states are square_avg, momentum_buffer if there is Momentum, and grad_avg if Centered. It takes the options
// unchecked, as torch's step does. On an error that wraps ErrParam nothing has changed.
func (o RMSpropOptions) StepTable(t Table) error {
	return o.stepTables([]RMSpropOptions{o}, []Table{t})
}

func (RMSpropOptions) stepTables(o []RMSpropOptions, t []Table) error {
	return stepTables[kernel.RMSprop](&rmspropPasses, o, t)
}

var rmspropPasses sync.Pool

func (o *RMSpropOptions) name() string { return "RMSprop" }

func (o *RMSpropOptions) check() error {
	return errors.Join(
		require(o.LR >= 0, "RMSprop", "LR", o.LR, "at least 0"),
		require(o.Alpha >= 0, "RMSprop", "Alpha", o.Alpha, "at least 0"),
		require(o.Eps >= 0, "RMSprop", "Eps", o.Eps, "at least 0"),
		require(o.WeightDecay >= 0, "RMSprop", "WeightDecay", o.WeightDecay, "at least 0"),
		require(o.Momentum >= 0, "RMSprop", "Momentum", o.Momentum, "at least 0"),
	)
}

func (o *RMSpropOptions) options() []option {
	return []option{
		{"lr", (*number)(&o.LR)},
		{"alpha", (*number)(&o.Alpha)},
		{"eps", (*number)(&o.Eps)},
		{"weight_decay", (*number)(&o.WeightDecay)},
		{"momentum", (*number)(&o.Momentum)},
		{"centered", &o.Centered},
		{"maximize", &o.Maximize},
	}
}

func (o *RMSpropOptions) keys() [engine.States]stateKey {
	return [engine.States]stateKey{{name: "square_avg"}, {"momentum_buffer", true}, {"grad_avg", true}}
}

func (o *RMSpropOptions) layout() engine.Layout {
	l := engine.Layout{Counts: true, State: [engine.States]engine.Use{engine.Column}}
	if o.Momentum > 0 {
		l.State[1] = engine.Column
	}
	if o.Centered {
		l.State[2] = engine.Column
	}
	return l
}

func (o *RMSpropOptions) initial(int) float64 {
	return 0
}

func (o *RMSpropOptions) scalars(n *now) kernel.RMSprop {
	return kernel.RMSprop{
		Coupled:  n.coupled(o.Maximize, o.WeightDecay),
		Alpha:    o.Alpha,
		C:        n.narrow(1 - o.Alpha),
		Centre:   n.weight(1 - o.Alpha),
		Eps:      o.Eps,
		Momentum: o.Momentum,
		Step:     n.narrow(-o.LR),
	}
}

func (o *RMSpropOptions) kernels() kernels[kernel.RMSprop] {
	return kernels[kernel.RMSprop]{f32.RMSprop, f64.RMSprop}
}
