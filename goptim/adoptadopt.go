package goptim

import (
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// AdoptADOPTOptions are the hyperparameters of AdoptADOPT.
type AdoptADOPTOptions struct {
	LR          float64    `torch:"lr" default:"1e-3" range:"[0,inf]"`        // learning rate
	Betas       [2]float64 `torch:"betas" default:"0.9 0.9999" range:"[0,1)"` // decay rates of the moments
	Eps         float64    `torch:"eps" default:"1e-6" range:"[0,inf]"`       // smallest denominator
	WeightDecay float64    `torch:"weight_decay" range:"[0,inf]"`
	Decouple    bool       `torch:"decouple"` // shrink the parameter itself instead of adding the decay to the gradient
	Maximize    bool       `torch:"maximize"`
}

var adoptADOPT = elementwiseSpec(class[AdoptADOPTOptions]{
	name:   "AdoptADOPT",
	states: []state{{key: "exp_avg"}, {key: "exp_avg_sq"}},
}, (*AdoptADOPTOptions).scalars, f32.ADOPT, f64.ADOPT)

// AdoptADOPT is ADOPT with the bound of its authors, the fourth root of the number of steps before. Results are bit-for-bit equal
// to ADOPT of the Python package torch-adopt.
type AdoptADOPT[T Element] struct {
	AdoptADOPTOptions     // used by the next Step; may be changed between steps
	Workers           int // maximum number of threads of a Step; 0 means GOMAXPROCS
	elementwise[T, AdoptADOPTOptions, kernel.ADOPT]
}

// NewAdoptADOPT returns a new AdoptADOPT for params. The error wraps ErrOption or ErrParam.
func NewAdoptADOPT[T Element](params []*Param[T], o AdoptADOPTOptions) (*AdoptADOPT[T], error) {
	opt := &AdoptADOPT[T]{AdoptADOPTOptions: o}
	return made(opt, opt.begin(adoptADOPT, &opt.AdoptADOPTOptions, &opt.Workers, params))
}

func (o *AdoptADOPTOptions) scalars(c *stepContext) kernel.ADOPT {
	of := ADOPTOptions{
		LR: o.LR, Betas: o.Betas, Eps: o.Eps, ClipExp: 0.25, WeightDecay: o.WeightDecay, Decoupled: o.Decouple, Maximize: o.Maximize,
	}
	return of.scalars(c)
}
