package goptim

import (
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// OptimiSGDOptions are the hyperparameters of OptimiSGD.
type OptimiSGDOptions struct {
	LR          float64 `torch:"lr" default:"1e-3" range:"[0,inf]"` // learning rate
	Momentum    float64 `torch:"momentum" range:"[0,1)"`            // decay of the momentum buffer; 0 disables it
	WeightDecay float64 `torch:"weight_decay" range:"[0,inf]"`
	Dampening   bool    `torch:"dampening"`                   // 1-Momentum multiplies the gradient in the buffer, which is an average
	DecoupleWD  bool    `torch:"decouple_wd"`                 // shrink the parameter by LR times WeightDecay instead of adding the decay to the gradient
	DecoupleLR  bool    `torch:"decouple_lr"`                 // shrink the parameter by LR / MaxLR times WeightDecay
	MaxLR       float64 `torch:"max_lr,null" range:"[0,inf]"` // the largest LR, for DecoupleLR; by default the first one
	TorchInit   bool    `torch:"torch_init"`                  // with Dampening, the buffer is the gradient at first instead of zero
}

var optimiSGD = elementwiseSpec(class[OptimiSGDOptions]{
	name: "OptimiSGD", uncounted: true,
	states:    []state{{key: "exp_avg", when: "momentum"}},
	complete:  func(o *OptimiSGDOptions) { completeMaxLR(&o.MaxLR, o.LR, o.DecoupleLR) },
	check:     func(o *OptimiSGDOptions) error { return checkDecoupled("OptimiSGD", o.DecoupleLR, o.MaxLR) },
	encodings: map[string]any{"max_lr": positive(0)},
}, (*OptimiSGDOptions).scalars, f32.OptimiSGD, f64.OptimiSGD)

// OptimiSGD is stochastic gradient descent, with a momentum buffer that is zero at first. Results are bit-for-bit equal to SGD of the
// Python package torch-optimi.
type OptimiSGD[T Element] struct {
	OptimiSGDOptions     // used by the next Step; may be changed between steps
	Workers          int // maximum number of threads of a Step; 0 means GOMAXPROCS
	elementwise[T, OptimiSGDOptions, kernel.OptimiSGD]
}

// NewOptimiSGD returns a new OptimiSGD for params. The error wraps ErrOption or ErrParam.
func NewOptimiSGD[T Element](params []*Param[T], o OptimiSGDOptions) (*OptimiSGD[T], error) {
	opt := &OptimiSGD[T]{OptimiSGDOptions: o}
	return made(opt, opt.begin(optimiSGD, &opt.OptimiSGDOptions, &opt.Workers, params))
}

func (o *OptimiSGDOptions) scalars(c *stepContext) kernel.OptimiSGD {
	h := kernel.OptimiSGD{Momentum: o.Momentum, Averages: kernel.Flag(o.Dampening)}
	if c.row.First() {
		h.Starts = kernel.Flag(o.Dampening && o.TorchInit)
		h.Clears = 1 - h.Starts
	}
	h.Coupled, h.Decay = c.optimiDecay(o.LR, o.WeightDecay, o.MaxLR, o.DecoupleWD, o.DecoupleLR)
	if o.Momentum != 0 && o.Dampening {
		h.C = c.weight(1 - o.Momentum)
	}
	h.Step = c.narrow(-o.LR)
	return h
}
