package goptim

import (
	"errors"
	"sync"

	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// AdamaxOptions are the hyperparameters of Adamax.
type AdamaxOptions struct {
	LR          float64    // learning rate, ≥ 0; New takes 0 as 2e-3
	Betas       [2]float64 // decay rates of the moments, each in [0, 1); New takes {0, 0} as {0.9, 0.999}
	Eps         float64    // added to the magnitude of the gradient, ≥ 0; New takes 0 as 1e-8
	WeightDecay float64    // added to the gradient, times the parameter; ≥ 0
	Maximize    bool
}

// Adamax is the optimizer of Kingma & Ba, "Adam: A Method for Stochastic Optimization", arXiv:1412.6980, Algorithm 2, with
// torch's eps. Its bits are those of torch.optim.Adamax.
type Adamax[T Float] struct {
	AdamaxOptions     // as the next Step uses them
	Workers       int // as many threads as a Step may use; 0 means GOMAXPROCS
	base          base[T, kernel.Adamax]
}

// NewAdamax makes an Adamax of params. The error wraps ErrOption or ErrParam.
func NewAdamax[T Float](params []*Param[T], o AdamaxOptions) (*Adamax[T], error) {
	if o.LR == 0 {
		o.LR = 2e-3
	}
	if o.Betas == [2]float64{} {
		o.Betas = [2]float64{0.9, 0.999}
	}
	if o.Eps == 0 {
		o.Eps = 1e-8
	}
	b, err := newBase(&o, params)
	if err != nil {
		return nil, err
	}
	return &Adamax[T]{AdamaxOptions: o, base: b}, nil
}

// Check reports what Step would refuse now.
func (a *Adamax[T]) Check() error { return a.base.checkAll(&a.AdamaxOptions) }

// MarshalBinary encodes options and state: see Stateful.
func (a *Adamax[T]) MarshalBinary() ([]byte, error) { return marshal(a) }

// UnmarshalBinary takes options and state: see Stateful.
func (a *Adamax[T]) UnmarshalBinary(data []byte) error { return unmarshal(a, data) }

func (a *Adamax[T]) groups() []group { return groupOf(&a.base, &a.AdamaxOptions) }

// Step updates every parameter that has a gradient. On an error that wraps ErrOption or ErrParam nothing has changed.
func (a *Adamax[T]) Step() error { return a.base.step(&a.AdamaxOptions, a.Workers) }

// StepTable runs one step over a table whose states are exp_avg and exp_inf. It takes the options
// unchecked, as torch's step does. On an error that wraps ErrParam nothing has changed.
func (o AdamaxOptions) StepTable(t Table) error { return o.stepTables([]AdamaxOptions{o}, []Table{t}) }

func (AdamaxOptions) stepTables(o []AdamaxOptions, t []Table) error {
	return stepTables[kernel.Adamax](&adamaxPasses, o, t)
}

var adamaxPasses sync.Pool

func (o *AdamaxOptions) name() string { return "Adamax" }

func (o *AdamaxOptions) check() error {
	return errors.Join(
		require(o.LR >= 0, "Adamax", "LR", o.LR, "at least 0"),
		require(o.Betas[0] >= 0 && o.Betas[0] < 1, "Adamax", "Betas[0]", o.Betas[0], "at least 0 and below 1"),
		require(o.Betas[1] >= 0 && o.Betas[1] < 1, "Adamax", "Betas[1]", o.Betas[1], "at least 0 and below 1"),
		require(o.Eps >= 0, "Adamax", "Eps", o.Eps, "at least 0"),
		require(o.WeightDecay >= 0, "Adamax", "WeightDecay", o.WeightDecay, "at least 0"),
	)
}

func (o *AdamaxOptions) options() []option {
	return []option{
		{"lr", (*number)(&o.LR)},
		{"betas", tupleOf(o.Betas[:])},
		{"eps", (*number)(&o.Eps)},
		{"weight_decay", (*number)(&o.WeightDecay)},
		{"maximize", &o.Maximize},
	}
}

func (o *AdamaxOptions) keys() [engine.States]stateKey {
	return [engine.States]stateKey{{name: "exp_avg"}, {name: "exp_inf"}}
}

func (o *AdamaxOptions) layout() engine.Layout {
	return engine.Layout{Counts: true, State: [engine.States]engine.Use{engine.Column, engine.Column}}
}

func (o *AdamaxOptions) initial(int) float64 {
	return 0
}

func (o *AdamaxOptions) scalars(n *now) kernel.Adamax {
	beta1 := o.Betas[0]
	return kernel.Adamax{
		Coupled: n.coupled(o.Maximize, o.WeightDecay),
		C1:      n.weight(1 - beta1),
		Beta2:   o.Betas[1],
		Eps:     o.Eps,
		Step:    n.narrow(-n.quotient(o.LR, 1-n.power(beta1, n.t, "RuntimeError"))),
	}
}

func (o *AdamaxOptions) kernels() kernels[kernel.Adamax] {
	return kernels[kernel.Adamax]{f32.Adamax, f64.Adamax}
}
