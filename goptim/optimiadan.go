package goptim

import (
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// OptimiAdanOptions are the hyperparameters of OptimiAdan, and the number of its steps.
type OptimiAdanOptions struct {
	LR          float64 `torch:"lr" default:"1e-3" range:"[0,inf]"`  // learning rate
	Beta1       float64 `torch:"beta1" default:"0.98" range:"[0,1)"` // decay rate of the average of gradients
	Beta2       float64 `torch:"beta2" default:"0.92" range:"[0,1)"` // decay rate of the average of their changes
	Beta3       float64 `torch:"beta3" default:"0.99" range:"[0,1)"` // decay rate of the average of squares
	WeightDecay float64 `torch:"weight_decay" range:"[0,inf]"`       // divides the parameter by 1 + LR times this; torch-optimi's default is 2e-2
	Eps         float64 `torch:"eps" default:"1e-6" range:"[0,inf]"` // added to the denominator
	DecoupleLR  bool    `torch:"decouple_lr"`                        // multiply WeightDecay by LR / MaxLR instead of LR
	MaxLR       float64 `torch:"max_lr,null" range:"[0,inf]"`        // the largest LR, for DecoupleLR; by default the first one
	Steps       int     `torch:"step"`                               // number of steps so far
}

var optimiAdan = elementwiseSpec(class[OptimiAdanOptions]{
	name: "OptimiAdan", uncounted: true,
	states:    []state{{key: "exp_avg"}, {key: "exp_avg_sq"}, {key: "exp_avg_diff"}, {key: "prev_grad"}},
	complete:  func(o *OptimiAdanOptions) { completeMaxLR(&o.MaxLR, o.LR, o.DecoupleLR) },
	check:     func(o *OptimiAdanOptions) error { return checkDecoupled("OptimiAdan", o.DecoupleLR, o.MaxLR) },
	encodings: map[string]any{"max_lr": positive(0)},
	advance:   func(o *OptimiAdanOptions, _ *stepContext) { o.Steps++ },
}, (*OptimiAdanOptions).scalars, f32.OptimiAdan, f64.OptimiAdan)

// OptimiAdan is the optimizer of Xie et al., "Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models",
// arXiv:2208.06677, Algorithm 1, with the averages of OptimiAdam. Results are bit-for-bit equal to Adan of the Python package
// torch-optimi.
type OptimiAdan[T Element] struct {
	OptimiAdanOptions     // used by the next Step; may be changed between steps
	Workers           int // maximum number of threads of a Step; 0 means GOMAXPROCS
	elementwise[T, OptimiAdanOptions, kernel.OptimiAdan]
}

// NewOptimiAdan returns a new OptimiAdan for params. The error wraps ErrOption or ErrParam.
func NewOptimiAdan[T Element](params []*Param[T], o OptimiAdanOptions) (*OptimiAdan[T], error) {
	opt := &OptimiAdan[T]{OptimiAdanOptions: o}
	return made(opt, opt.begin(optimiAdan, &opt.OptimiAdanOptions, &opt.Workers, params))
}

func (o *OptimiAdanOptions) scalars(c *stepContext) kernel.OptimiAdan {
	t := float64(o.Steps + 1)
	beta1, beta2, beta3 := c.debiased(o.Beta1, t), c.debiased(o.Beta2, t), c.debiased(o.Beta3, t)
	h := kernel.OptimiAdan{
		Coupled: kernel.CoupledOf(false, 0), First: kernel.Flag(c.row.First()), Shrink: 1, Beta2: o.Beta2, Beta3: beta3, Eps: o.Eps,
	}
	if o.WeightDecay != 0 {
		h.Shrink = unlessZero(1 + float64(c.optimiRate(o.LR, o.MaxLR, o.DecoupleLR)*o.WeightDecay))
	}
	h.C1, h.C2, h.C3 = c.weight(1-beta1), c.weight(1-beta2), c.narrow(1-beta3)
	h.Step, h.StepDiff = c.narrow(-o.LR), c.narrow(-o.LR*o.Beta2)
	return h
}
