package goptim

import (
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// AdamaxOptions are the hyperparameters of Adamax.
type AdamaxOptions struct {
	LR          float64    `torch:"lr" default:"2e-3" range:"[0,inf]"`       // learning rate
	Betas       [2]float64 `torch:"betas" default:"0.9 0.999" range:"[0,1)"` // decay rates of the moments
	Eps         float64    `torch:"eps" default:"1e-8" range:"[0,inf]"`      // added to the magnitude of the gradient
	WeightDecay float64    `torch:"weight_decay" range:"[0,inf]"`            // added to the gradient, times the parameter
	Maximize    bool       `torch:"maximize"`
}

var adamax = elementwiseSpec(class[AdamaxOptions]{
	name:   "Adamax",
	states: []state{{key: "exp_avg"}, {key: "exp_inf"}},
}, (*AdamaxOptions).scalars, f32.Adamax, f64.Adamax)

// Adamax is the optimizer of Kingma & Ba, "Adam: A Method for Stochastic Optimization", arXiv:1412.6980, Algorithm 2,
// with torch's eps. Results are bit-for-bit equal to torch.optim.Adamax.
type Adamax[T Element] struct {
	AdamaxOptions     // used by the next Step; may be changed between steps
	Workers       int // maximum number of threads of a Step; 0 means GOMAXPROCS
	elementwise[T, AdamaxOptions, kernel.Adamax]
}

// NewAdamax returns a new Adamax for params. The error wraps ErrOption or ErrParam.
func NewAdamax[T Element](params []*Param[T], o AdamaxOptions) (*Adamax[T], error) {
	opt := &Adamax[T]{AdamaxOptions: o}
	return made(opt, opt.begin(adamax, &opt.AdamaxOptions, &opt.Workers, params))
}

func (o *AdamaxOptions) scalars(c *stepContext) kernel.Adamax {
	beta1 := o.Betas[0]
	return kernel.Adamax{
		Coupled: c.coupled(o.Maximize, o.WeightDecay),
		C1:      c.weight(1 - beta1),
		Beta2:   o.Betas[1],
		Eps:     o.Eps,
		Step:    c.narrow(-c.quotient(o.LR, 1-c.power(beta1, c.t, "RuntimeError"))),
	}
}
