package goptim

import (
	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// NAdamOptions are the hyperparameters of NAdam.
type NAdamOptions struct {
	LR                   float64    `torch:"lr" default:"2e-3" range:"[0,inf]"`       // learning rate
	Betas                [2]float64 `torch:"betas" default:"0.9 0.999" range:"[0,1)"` // decay rates of the moments
	Eps                  float64    `torch:"eps" default:"1e-8" range:"[0,inf]"`      // added to the denominator
	WeightDecay          float64    `torch:"weight_decay" range:"[0,inf]"`
	MomentumDecay        float64    `torch:"momentum_decay" range:"[0,inf]"` // decay of the momentum schedule; torch's default is 4e-3
	DecoupledWeightDecay bool       `torch:"decoupled_weight_decay"`         // shrink the parameter itself instead of adding the decay to the gradient
	Maximize             bool       `torch:"maximize"`
}

var nadam = elementwiseSpec(class[NAdamOptions]{
	name:   "NAdam",
	states: []state{nadamMuProduct: {key: "mu_product", scalar: true, initial: 1}, {key: "exp_avg"}, {key: "exp_avg_sq"}},
}, (*NAdamOptions).scalars, f32.NAdam, f64.NAdam)

// NAdam is the optimizer of Dozat, "Incorporating Nesterov Momentum into Adam", ICLR 2016 workshop, Algorithm 2.
// Results are bit-for-bit equal to torch.optim.NAdam.
type NAdam[T Element] struct {
	NAdamOptions     // used by the next Step; may be changed between steps
	Workers      int // maximum number of threads of a Step; 0 means GOMAXPROCS
	elementwise[T, NAdamOptions, kernel.NAdam]
}

// NewNAdam returns a new NAdam for params. The error wraps ErrOption or ErrParam.
func NewNAdam[T Element](params []*Param[T], o NAdamOptions) (*NAdam[T], error) {
	opt := &NAdam[T]{NAdamOptions: o}
	return made(opt, opt.begin(nadam, &opt.NAdamOptions, &opt.Workers, params))
}

// nadamMuProduct is the index of NAdam's scalar state, the product of all momenta so far.
const nadamMuProduct = 0

func (o *NAdamOptions) scalars(c *stepContext) kernel.NAdam {
	beta1, beta2 := o.Betas[0], o.Betas[1]
	h := kernel.NAdam{
		Coupled: kernel.CoupledOf(o.Maximize, 0),
		Decay:   1,
		Beta2:   beta2,
		BC2:     1 - c.power(beta2, c.t, "RuntimeError"),
		Eps:     o.Eps,
	}
	if o.DecoupledWeightDecay {
		h.Decay = decoupled(o.LR, o.WeightDecay)
	} else {
		h.Coupled = c.coupled(o.Maximize, o.WeightDecay)
	}
	mu := float64(beta1 * (1 - float64(0.5*c.realPower(0.96, c.t*o.MomentumDecay))))
	next := beta1 * (1 - float64(0.5*c.realPower(0.96, (c.t+1)*o.MomentumDecay)))
	factor := mu
	if c.row.StateType[nadamMuProduct] != engine.Float64 {
		factor = float64(float32(mu))
	}
	product := c.setNumber(nadamMuProduct, float64(c.row.Number(nadamMuProduct)*factor))
	h.C1, h.C2 = c.weight(1-beta1), c.narrow(1-beta2)
	h.StepG = c.narrow(c.quotient(-o.LR*(1-mu), 1-product))
	h.StepM = c.narrow(c.quotient(-o.LR*next, 1-float64(product*next)))
	return h
}
