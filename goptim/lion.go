package goptim

import (
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// LionOptions are the hyperparameters of Lion.
type LionOptions struct {
	LR          float64    `torch:"lr" default:"1e-4" range:"[0,inf]"`      // learning rate
	Betas       [2]float64 `torch:"betas" default:"0.9 0.99" range:"[0,1]"` // weights of the average, in the direction and over time
	WeightDecay float64    `torch:"weight_decay" range:"[0,inf]"`           // decoupled: shrinks the parameter by LR times this
}

var lion = elementwiseSpec(class[LionOptions]{
	name: "Lion", uncounted: true,
	states: []state{{key: "exp_avg"}},
}, (*LionOptions).scalars, f32.Lion, f64.Lion)

// Lion is the optimizer of Chen et al., "Symbolic Discovery of Optimization Algorithms", arXiv:2302.06675, Algorithm 2. Results
// are bit-for-bit equal to Lion of the Python package lion-pytorch. Its decoupled_weight_decay is a WeightDecay divided by the
// first LR.
type Lion[T Element] struct {
	LionOptions     // used by the next Step; may be changed between steps
	Workers     int // maximum number of threads of a Step; 0 means GOMAXPROCS
	elementwise[T, LionOptions, kernel.Lion]
}

// NewLion returns a new Lion for params. The error wraps ErrOption or ErrParam.
func NewLion[T Element](params []*Param[T], o LionOptions) (*Lion[T], error) {
	opt := &Lion[T]{LionOptions: o}
	return made(opt, opt.begin(lion, &opt.LionOptions, &opt.Workers, params))
}

func (o *LionOptions) scalars(c *stepContext) kernel.Lion {
	beta1, beta2 := o.Betas[0], o.Betas[1]
	return kernel.Lion{
		Decay: 1 - float64(o.LR*o.WeightDecay),
		Beta1: beta1,
		C1:    c.narrow(1 - beta1),
		Beta2: beta2,
		C2:    c.narrow(1 - beta2),
		Step:  c.narrow(-o.LR),
	}
}
