package goptim

import (
	"errors"
	"sync"

	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// AdadeltaOptions are the hyperparameters of Adadelta.
type AdadeltaOptions struct {
	LR          float64 // learning rate, ≥ 0; New takes 0 as 1
	Rho         float64 // decay rate of the averages of squares, in [0, 1]; New takes 0 as 0.9
	Eps         float64 // added to the averages, ≥ 0; New takes 0 as 1e-6
	WeightDecay float64 // added to the gradient, times the parameter; ≥ 0
	Maximize    bool
}

// Adadelta is the optimizer of Zeiler, "ADADELTA: An Adaptive Learning Rate Method", arXiv:1212.5701, Algorithm 1, with a
// learning rate. Its bits are those of torch.optim.Adadelta.
type Adadelta[T Float] struct {
	AdadeltaOptions     // as the next Step uses them
	Workers         int // as many threads as a Step may use; 0 means GOMAXPROCS
	base            base[T, kernel.Adadelta]
}

// NewAdadelta makes an Adadelta of params. The error wraps ErrOption or ErrParam.
func NewAdadelta[T Float](params []*Param[T], o AdadeltaOptions) (*Adadelta[T], error) {
	if o.LR == 0 {
		o.LR = 1
	}
	if o.Rho == 0 {
		o.Rho = 0.9
	}
	if o.Eps == 0 {
		o.Eps = 1e-6
	}
	b, err := newBase(&o, params)
	if err != nil {
		return nil, err
	}
	return &Adadelta[T]{AdadeltaOptions: o, base: b}, nil
}

// Check reports what Step would refuse now.
func (a *Adadelta[T]) Check() error { return a.base.checkAll(&a.AdadeltaOptions) }

// MarshalBinary encodes options and state: see Stateful.
func (a *Adadelta[T]) MarshalBinary() ([]byte, error) { return marshal(a) }

// UnmarshalBinary takes options and state: see Stateful.
func (a *Adadelta[T]) UnmarshalBinary(data []byte) error { return unmarshal(a, data) }

func (a *Adadelta[T]) groups() []group { return groupOf(&a.base, &a.AdadeltaOptions) }

// Step updates every parameter that has a gradient. On an error that wraps ErrOption or ErrParam nothing has changed.
func (a *Adadelta[T]) Step() error { return a.base.step(&a.AdadeltaOptions, a.Workers) }

// StepTable runs one step over a table whose states are square_avg and acc_delta. It takes the options
// unchecked, as torch's step does. On an error that wraps ErrParam nothing has changed.
func (o AdadeltaOptions) StepTable(t Table) error {
	return o.stepTables([]AdadeltaOptions{o}, []Table{t})
}

func (AdadeltaOptions) stepTables(o []AdadeltaOptions, t []Table) error {
	return stepTables[kernel.Adadelta](&adadeltaPasses, o, t)
}

var adadeltaPasses sync.Pool

func (o *AdadeltaOptions) name() string { return "Adadelta" }

func (o *AdadeltaOptions) check() error {
	return errors.Join(
		require(o.LR >= 0, "Adadelta", "LR", o.LR, "at least 0"),
		require(o.Rho >= 0 && o.Rho <= 1, "Adadelta", "Rho", o.Rho, "at least 0 and at most 1"),
		require(o.Eps >= 0, "Adadelta", "Eps", o.Eps, "at least 0"),
		require(o.WeightDecay >= 0, "Adadelta", "WeightDecay", o.WeightDecay, "at least 0"),
	)
}

func (o *AdadeltaOptions) options() []option {
	return []option{
		{"lr", (*number)(&o.LR)},
		{"rho", (*number)(&o.Rho)},
		{"eps", (*number)(&o.Eps)},
		{"weight_decay", (*number)(&o.WeightDecay)},
		{"maximize", &o.Maximize},
	}
}

func (o *AdadeltaOptions) keys() [engine.States]stateKey {
	return [engine.States]stateKey{{name: "square_avg"}, {name: "acc_delta"}}
}

func (o *AdadeltaOptions) layout() engine.Layout {
	return engine.Layout{Counts: true, State: [engine.States]engine.Use{engine.Column, engine.Column}}
}

func (o *AdadeltaOptions) initial(int) float64 {
	return 0
}

func (o *AdadeltaOptions) scalars(n *now) kernel.Adadelta {
	return kernel.Adadelta{
		Coupled: n.coupled(o.Maximize, o.WeightDecay),
		Rho:     o.Rho,
		C:       n.narrow(1 - o.Rho),
		Eps:     o.Eps,
		Step:    n.narrow(-o.LR),
	}
}

func (o *AdadeltaOptions) kernels() kernels[kernel.Adadelta] {
	return kernels[kernel.Adadelta]{f32.Adadelta, f64.Adadelta}
}
