package goptim

import (
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// RAdamOptions are the hyperparameters of RAdam.
type RAdamOptions struct {
	LR                   float64    `torch:"lr" default:"1e-3" range:"[0,inf]"`       // learning rate
	Betas                [2]float64 `torch:"betas" default:"0.9 0.999" range:"[0,1)"` // decay rates of the moments
	Eps                  float64    `torch:"eps" default:"1e-8" range:"[0,inf]"`      // added to the denominator
	WeightDecay          float64    `torch:"weight_decay" range:"[0,inf]"`
	DecoupledWeightDecay bool       `torch:"decoupled_weight_decay"` // shrink the parameter itself instead of adding the decay to the gradient
	Maximize             bool       `torch:"maximize"`
}

var radam = elementwiseSpec(class[RAdamOptions]{
	name:   "RAdam",
	states: []state{{key: "exp_avg"}, {key: "exp_avg_sq"}},
}, (*RAdamOptions).scalars, f32.RAdam, f64.RAdam)

// RAdam is the optimizer of Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond", arXiv:1908.03265,
// Algorithm 2. Results are bit-for-bit equal to torch.optim.RAdam.
type RAdam[T Element] struct {
	RAdamOptions     // used by the next Step; may be changed between steps
	Workers      int // maximum number of threads of a Step; 0 means GOMAXPROCS
	elementwise[T, RAdamOptions, kernel.RAdam]
}

// NewRAdam returns a new RAdam for params. The error wraps ErrOption or ErrParam.
func NewRAdam[T Element](params []*Param[T], o RAdamOptions) (*RAdam[T], error) {
	opt := &RAdam[T]{RAdamOptions: o}
	return made(opt, opt.begin(radam, &opt.RAdamOptions, &opt.Workers, params))
}

func (o *RAdamOptions) scalars(c *stepContext) kernel.RAdam {
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
		h.Coupled = c.coupled(o.Maximize, o.WeightDecay)
	}
	h.C1, h.C2 = c.weight(1-beta1), c.narrow(1-beta2)
	h.BC1 = 1 - c.power(beta1, c.t, "RuntimeError")
	power := c.power(beta2, c.t, "RuntimeError")
	bc2 := 1 - power
	rhoInf := c.quotient(2, 1-beta2) - 1
	rho := rhoInf - c.quotient(2*c.t*power, bc2)
	if rho > 5 {
		h.Rectified, h.Eps = 1, o.Eps
		h.Rect = c.power(c.quotient((rho-4)*(rho-2)*rhoInf, (rhoInf-4)*(rhoInf-2)*rho), 0.5, "RuntimeError")
		h.BC2Sqrt = c.power(bc2, 0.5, "RuntimeError") // torch rejects a complex result last
	}
	return h
}
