package goptim

import (
	"errors"
	"sync"

	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// RAdamOptions are the hyperparameters of RAdam.
type RAdamOptions struct {
	LR                   float64    // learning rate, ≥ 0; New takes 0 as 1e-3
	Betas                [2]float64 // decay rates of the moments, each in [0, 1); New takes {0, 0} as {0.9, 0.999}
	Eps                  float64    // added to the denominator, ≥ 0; New takes 0 as 1e-8
	WeightDecay          float64    // ≥ 0
	DecoupledWeightDecay bool       // shrink the parameter itself instead of adding the decay to the gradient
	Maximize             bool
}

// RAdam is the optimizer of Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond", arXiv:1908.03265,
// Algorithm 2. Its bits are those of torch.optim.RAdam.
type RAdam[T Float] struct {
	RAdamOptions     // as the next Step uses them
	Workers      int // as many threads as a Step may use; 0 means GOMAXPROCS
	base         base[T, kernel.RAdam]
}

// NewRAdam makes an RAdam of params. The error wraps ErrOption or ErrParam.
func NewRAdam[T Float](params []*Param[T], o RAdamOptions) (*RAdam[T], error) {
	if o.LR == 0 {
		o.LR = 1e-3
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
	return &RAdam[T]{RAdamOptions: o, base: b}, nil
}

// Check reports what Step would refuse now.
func (r *RAdam[T]) Check() error { return r.base.checkAll(&r.RAdamOptions) }

// MarshalBinary encodes options and state: see Stateful.
func (r *RAdam[T]) MarshalBinary() ([]byte, error) { return marshal(r) }

// UnmarshalBinary takes options and state: see Stateful.
func (r *RAdam[T]) UnmarshalBinary(data []byte) error { return unmarshal(r, data) }

func (r *RAdam[T]) groups() []group { return groupOf(&r.base, &r.RAdamOptions) }

// Step updates every parameter that has a gradient. On an error that wraps ErrOption or ErrParam nothing has changed.
func (r *RAdam[T]) Step() error { return r.base.step(&r.RAdamOptions, r.Workers) }

// StepTable runs one step over a table whose states are exp_avg and exp_avg_sq. It takes the options
// unchecked, as torch's step does. On an error that wraps ErrParam nothing has changed.
func (o RAdamOptions) StepTable(t Table) error { return o.stepTables([]RAdamOptions{o}, []Table{t}) }

func (RAdamOptions) stepTables(o []RAdamOptions, t []Table) error {
	return stepTables[kernel.RAdam](&radamPasses, o, t)
}

var radamPasses sync.Pool

func (o *RAdamOptions) name() string { return "RAdam" }

func (o *RAdamOptions) check() error {
	return errors.Join(
		require(o.LR >= 0, "RAdam", "LR", o.LR, "at least 0"),
		require(o.Betas[0] >= 0 && o.Betas[0] < 1, "RAdam", "Betas[0]", o.Betas[0], "at least 0 and below 1"),
		require(o.Betas[1] >= 0 && o.Betas[1] < 1, "RAdam", "Betas[1]", o.Betas[1], "at least 0 and below 1"),
		require(o.Eps >= 0, "RAdam", "Eps", o.Eps, "at least 0"),
		require(o.WeightDecay >= 0, "RAdam", "WeightDecay", o.WeightDecay, "at least 0"),
	)
}

func (o *RAdamOptions) options() []option {
	return []option{
		{"lr", (*number)(&o.LR)},
		{"betas", tupleOf(o.Betas[:])},
		{"eps", (*number)(&o.Eps)},
		{"weight_decay", (*number)(&o.WeightDecay)},
		{"decoupled_weight_decay", &o.DecoupledWeightDecay},
		{"maximize", &o.Maximize},
	}
}

func (o *RAdamOptions) keys() [engine.States]stateKey {
	return [engine.States]stateKey{{name: "exp_avg"}, {name: "exp_avg_sq"}}
}

func (o *RAdamOptions) layout() engine.Layout {
	return engine.Layout{Counts: true, State: [engine.States]engine.Use{engine.Column, engine.Column}}
}

func (o *RAdamOptions) initial(int) float64 {
	return 0
}

func (o *RAdamOptions) scalars(n *now) kernel.RAdam {
	beta1, beta2 := o.Betas[0], o.Betas[1]
	h := kernel.RAdam{
		Coupled: kernel.CoupledOf(o.Maximize, 0),
		Decay:   1,
		Beta2:   beta2,
		LR:      o.LR,
	}
	if o.DecoupledWeightDecay {
		h.Decay = decoupled(o.LR, o.WeightDecay)
	} else {
		h.Coupled = n.coupled(o.Maximize, o.WeightDecay)
	}
	h.C1, h.C2 = n.weight(1-beta1), n.narrow(1-beta2)
	h.BC1 = 1 - n.power(beta1, n.t, "RuntimeError")
	power := n.power(beta2, n.t, "RuntimeError")
	bc2 := 1 - power
	rhoInf := n.quotient(2, 1-beta2) - 1
	rho := rhoInf - n.quotient(2*n.t*power, bc2)
	if rho > 5 {
		h.Rectified, h.Eps = 1, o.Eps
		h.Rect = n.power(n.quotient((rho-4)*(rho-2)*rhoInf, (rhoInf-4)*(rhoInf-2)*rho), 0.5, "RuntimeError")
		h.BC2Sqrt = n.power(bc2, 0.5, "RuntimeError") // torch refuses a complex one last
	}
	return h
}

func (o *RAdamOptions) kernels() kernels[kernel.RAdam] {
	return kernels[kernel.RAdam]{f32.RAdam, f64.RAdam}
}
