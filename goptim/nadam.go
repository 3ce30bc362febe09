package goptim

import (
	"errors"
	"sync"

	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// NAdamOptions are the hyperparameters of NAdam.
type NAdamOptions struct {
	LR                   float64    // learning rate, ≥ 0; New takes 0 as 2e-3
	Betas                [2]float64 // decay rates of the moments, each in [0, 1); New takes {0, 0} as {0.9, 0.999}
	Eps                  float64    // added to the denominator, ≥ 0; New takes 0 as 1e-8
	WeightDecay          float64    // ≥ 0
	MomentumDecay        float64    // of the momentum's schedule, ≥ 0; torch's default is 4e-3
	DecoupledWeightDecay bool       // shrink the parameter itself instead of adding the decay to the gradient
	Maximize             bool
}

// NAdam is the optimizer of Dozat, "Incorporating Nesterov Momentum into Adam", ICLR 2016 workshop, Algorithm 2. Its bits
// are those of torch.optim.NAdam.
type NAdam[T Float] struct {
	NAdamOptions     // as the next Step uses them
	Workers      int // as many threads as a Step may use; 0 means GOMAXPROCS
	base         base[T, kernel.NAdam]
}

// NewNAdam makes an NAdam of params. The error wraps ErrOption or ErrParam.
func NewNAdam[T Float](params []*Param[T], o NAdamOptions) (*NAdam[T], error) {
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
	return &NAdam[T]{NAdamOptions: o, base: b}, nil
}

// Check reports what Step would refuse now.
func (n *NAdam[T]) Check() error { return n.base.checkAll(&n.NAdamOptions) }

// MarshalBinary encodes options and state: see Stateful.
func (n *NAdam[T]) MarshalBinary() ([]byte, error) { return marshal(n) }

// UnmarshalBinary takes options and state: see Stateful.
func (n *NAdam[T]) UnmarshalBinary(data []byte) error { return unmarshal(n, data) }

func (n *NAdam[T]) groups() []group { return groupOf(&n.base, &n.NAdamOptions) }

// Step updates every parameter that has a gradient. On an error that wraps ErrOption or ErrParam nothing has changed.
func (n *NAdam[T]) Step() error { return n.base.step(&n.NAdamOptions, n.Workers) }

// StepTable runs one step over a table whose states are mu_product, exp_avg and exp_avg_sq. It takes the options
// unchecked, as torch's step does. On an error that wraps ErrParam nothing has changed.
func (o NAdamOptions) StepTable(t Table) error { return o.stepTables([]NAdamOptions{o}, []Table{t}) }

func (NAdamOptions) stepTables(o []NAdamOptions, t []Table) error {
	return stepTables[kernel.NAdam](&nadamPasses, o, t)
}

var nadamPasses sync.Pool

func (o *NAdamOptions) name() string { return "NAdam" }

func (o *NAdamOptions) check() error {
	return errors.Join(
		require(o.LR >= 0, "NAdam", "LR", o.LR, "at least 0"),
		require(o.Betas[0] >= 0 && o.Betas[0] < 1, "NAdam", "Betas[0]", o.Betas[0], "at least 0 and below 1"),
		require(o.Betas[1] >= 0 && o.Betas[1] < 1, "NAdam", "Betas[1]", o.Betas[1], "at least 0 and below 1"),
		require(o.Eps >= 0, "NAdam", "Eps", o.Eps, "at least 0"),
		require(o.WeightDecay >= 0, "NAdam", "WeightDecay", o.WeightDecay, "at least 0"),
		require(o.MomentumDecay >= 0, "NAdam", "MomentumDecay", o.MomentumDecay, "at least 0"),
	)
}

// nadamMuProduct is the state of NAdam that is one number: the product of all momenta so far.
const nadamMuProduct = 0

func (o *NAdamOptions) options() []option {
	return []option{
		{"lr", (*number)(&o.LR)},
		{"betas", tupleOf(o.Betas[:])},
		{"eps", (*number)(&o.Eps)},
		{"weight_decay", (*number)(&o.WeightDecay)},
		{"momentum_decay", (*number)(&o.MomentumDecay)},
		{"decoupled_weight_decay", &o.DecoupledWeightDecay},
		{"maximize", &o.Maximize},
	}
}

func (o *NAdamOptions) keys() [engine.States]stateKey {
	return [engine.States]stateKey{{name: "mu_product"}, {name: "exp_avg"}, {name: "exp_avg_sq"}}
}

func (o *NAdamOptions) layout() engine.Layout {
	return engine.Layout{Counts: true, State: [engine.States]engine.Use{engine.Number, engine.Column, engine.Column}}
}

func (o *NAdamOptions) initial(state int) float64 {
	if state == nadamMuProduct {
		return 1
	}
	return 0
}

func (o *NAdamOptions) scalars(n *now) kernel.NAdam {
	beta1, beta2 := o.Betas[0], o.Betas[1]
	h := kernel.NAdam{
		Coupled: kernel.CoupledOf(o.Maximize, 0),
		Decay:   1,
		Beta2:   beta2,
		BC2:     1 - n.power(beta2, n.t, "RuntimeError"),
		Eps:     o.Eps,
	}
	if o.DecoupledWeightDecay {
		h.Decay = decoupled(o.LR, o.WeightDecay)
	} else {
		h.Coupled = n.coupled(o.Maximize, o.WeightDecay)
	}
	mu := float64(beta1 * (1 - float64(0.5*n.realPower(0.96, n.t*o.MomentumDecay))))
	next := beta1 * (1 - float64(0.5*n.realPower(0.96, (n.t+1)*o.MomentumDecay)))
	factor := mu
	if n.row.NumberDType(nadamMuProduct) == engine.Float32 {
		factor = float64(float32(mu))
	}
	product := n.setNumber(nadamMuProduct, float64(n.row.Number(nadamMuProduct)*factor))
	h.C1, h.C2 = n.weight(1-beta1), n.narrow(1-beta2)
	h.StepG = n.narrow(n.quotient(-o.LR*(1-mu), 1-product))
	h.StepM = n.narrow(n.quotient(-o.LR*next, 1-float64(product*next)))
	return h
}

func (o *NAdamOptions) kernels() kernels[kernel.NAdam] {
	return kernels[kernel.NAdam]{f32.NAdam, f64.NAdam}
}
