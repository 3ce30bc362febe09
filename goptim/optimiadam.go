package goptim

import (
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// OptimiAdamOptions are the hyperparameters of OptimiAdam, and the number of its steps.
type OptimiAdamOptions struct {
	LR          float64 `torch:"lr" default:"1e-3" range:"[0,inf]"`  // learning rate
	Beta1       float64 `torch:"beta1" default:"0.9" range:"[0,1)"`  // decay rate of the first moment
	Beta2       float64 `torch:"beta2" default:"0.99" range:"[0,1)"` // decay rate of the second moment
	WeightDecay float64 `torch:"weight_decay" range:"[0,inf]"`       // torch-optimi's default is 0 for Adam and 0.01 for AdamW
	Eps         float64 `torch:"eps" default:"1e-6" range:"[0,inf]"` // added to the denominator
	DecoupleWD  bool    `torch:"decouple_wd"`                        // shrink the parameter by LR times WeightDecay instead of adding the decay to the gradient
	DecoupleLR  bool    `torch:"decouple_lr"`                        // shrink the parameter by LR / MaxLR times WeightDecay
	MaxLR       float64 `torch:"max_lr,null" range:"[0,inf]"`        // the largest LR, for DecoupleLR; by default the first one
	Steps       int     `torch:"step"`                               // number of steps so far
}

var optimiAdam = elementwiseSpec(class[OptimiAdamOptions]{
	name: "OptimiAdam", uncounted: true,
	variant: "OptimiAdamW", flag: "decouple_wd",
	states:    []state{{key: "exp_avg"}, {key: "exp_avg_sq"}},
	complete:  func(o *OptimiAdamOptions) { completeMaxLR(&o.MaxLR, o.LR, o.DecoupleLR) },
	check:     func(o *OptimiAdamOptions) error { return checkDecoupled("OptimiAdam", o.DecoupleLR, o.MaxLR) },
	encodings: map[string]any{"max_lr": positive(0)},
	advance:   func(o *OptimiAdamOptions, _ *stepContext) { o.Steps++ },
}, (*OptimiAdamOptions).scalars, f32.OptimiAdam, f64.OptimiAdam)

// OptimiAdam is Adam or AdamW whose averages are unbiased because their weights depend on the step, instead of being divided by bias
// corrections. Results are bit-for-bit equal to Adam and AdamW of the Python package torch-optimi.
type OptimiAdam[T Element] struct {
	OptimiAdamOptions     // used by the next Step; may be changed between steps
	Workers           int // maximum number of threads of a Step; 0 means GOMAXPROCS
	elementwise[T, OptimiAdamOptions, kernel.OptimiAdam]
}

// NewOptimiAdam returns a new OptimiAdam for params. The error wraps ErrOption or ErrParam.
func NewOptimiAdam[T Element](params []*Param[T], o OptimiAdamOptions) (*OptimiAdam[T], error) {
	opt := &OptimiAdam[T]{OptimiAdamOptions: o}
	return made(opt, opt.begin(optimiAdam, &opt.OptimiAdamOptions, &opt.Workers, params))
}

// NewOptimiAdamW returns a new OptimiAdam with decoupled weight decay. The error wraps ErrOption or ErrParam.
func NewOptimiAdamW[T Element](params []*Param[T], o OptimiAdamOptions) (*OptimiAdam[T], error) {
	o.DecoupleWD = true
	return NewOptimiAdam(params, o)
}

func (o *OptimiAdamOptions) scalars(c *stepContext) kernel.OptimiAdam {
	t := float64(o.Steps + 1)
	beta1, beta2 := c.debiased(o.Beta1, t), c.debiased(o.Beta2, t)
	h := kernel.OptimiAdam{Beta2: beta2, Eps: o.Eps, Normalizes: 1}
	h.Coupled, h.Decay = c.optimiDecay(o.LR, o.WeightDecay, o.MaxLR, o.DecoupleWD, o.DecoupleLR)
	h.C1, h.C2, h.Step = c.weight(1-beta1), c.narrow(1-beta2), c.narrow(-o.LR)
	return h
}
