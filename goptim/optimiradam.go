package goptim

import (
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// OptimiRAdamOptions are the hyperparameters of OptimiRAdam, and the number of its steps.
type OptimiRAdamOptions struct {
	LR          float64 `torch:"lr" default:"1e-3" range:"[0,inf]"`  // learning rate
	Beta1       float64 `torch:"beta1" default:"0.9" range:"[0,1)"`  // decay rate of the first moment
	Beta2       float64 `torch:"beta2" default:"0.99" range:"[0,1)"` // decay rate of the second moment
	WeightDecay float64 `torch:"weight_decay" range:"[0,inf]"`
	Eps         float64 `torch:"eps" default:"1e-6" range:"[0,inf]"` // added to the denominator
	DecoupleWD  bool    `torch:"decouple_wd"`                        // shrink the parameter by LR times WeightDecay instead of adding the decay to the gradient
	DecoupleLR  bool    `torch:"decouple_lr"`                        // shrink the parameter by LR / MaxLR times WeightDecay
	MaxLR       float64 `torch:"max_lr,null" range:"[0,inf]"`        // the largest LR, for DecoupleLR; by default the first one
	Steps       int     `torch:"step"`                               // number of steps so far
}

var optimiRAdam = elementwiseSpec(class[OptimiRAdamOptions]{
	name: "OptimiRAdam", uncounted: true,
	states:    []state{{key: "exp_avg"}, {key: "exp_avg_sq"}},
	complete:  func(o *OptimiRAdamOptions) { completeMaxLR(&o.MaxLR, o.LR, o.DecoupleLR) },
	check:     func(o *OptimiRAdamOptions) error { return checkDecoupled("OptimiRAdam", o.DecoupleLR, o.MaxLR) },
	encodings: map[string]any{"max_lr": positive(0)},
	advance:   func(o *OptimiRAdamOptions, _ *stepContext) { o.Steps++ },
}, (*OptimiRAdamOptions).scalars, f32.OptimiAdam, f64.OptimiAdam)

// OptimiRAdam is the optimizer of Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond", arXiv:1908.03265, Algorithm 2,
// with the averages of OptimiAdam. Results are bit-for-bit equal to RAdam of the Python package torch-optimi.
type OptimiRAdam[T Element] struct {
	OptimiRAdamOptions     // used by the next Step; may be changed between steps
	Workers            int // maximum number of threads of a Step; 0 means GOMAXPROCS
	elementwise[T, OptimiRAdamOptions, kernel.OptimiAdam]
}

// NewOptimiRAdam returns a new OptimiRAdam for params. The error wraps ErrOption or ErrParam.
func NewOptimiRAdam[T Element](params []*Param[T], o OptimiRAdamOptions) (*OptimiRAdam[T], error) {
	opt := &OptimiRAdam[T]{OptimiRAdamOptions: o}
	return made(opt, opt.begin(optimiRAdam, &opt.OptimiRAdamOptions, &opt.Workers, params))
}

func (o *OptimiRAdamOptions) scalars(c *stepContext) kernel.OptimiAdam {
	t := float64(o.Steps + 1)
	beta1, beta2 := c.debiased(o.Beta1, t), c.debiased(o.Beta2, t)
	h := kernel.OptimiAdam{Beta2: beta2, Eps: o.Eps, Step: -o.LR}
	rhoInf := c.quotient(2, 1-o.Beta2) - 1
	power := c.power(o.Beta2, t, "TypeError")
	rho := rhoInf - c.quotient(2*t*power, 1-power)
	if rho > 5 {
		h.Normalizes = 1
		h.Step *= c.sqrt(c.quotient((rho-4)*(rho-2)*rhoInf, (rhoInf-4)*(rhoInf-2)*rho))
	}
	h.Coupled, h.Decay = c.optimiDecay(o.LR, o.WeightDecay, o.MaxLR, o.DecoupleWD, o.DecoupleLR)
	h.C1, h.C2 = c.weight(1-beta1), c.narrow(1-beta2)
	c.narrow(h.Step)
	return h
}
