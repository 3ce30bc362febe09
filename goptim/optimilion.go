package goptim

import (
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// OptimiLionOptions are the hyperparameters of OptimiLion.
type OptimiLionOptions struct {
	LR          float64 `torch:"lr" default:"1e-4" range:"[0,inf]"`  // learning rate
	Beta1       float64 `torch:"beta1" default:"0.9" range:"[0,1)"`  // weight of the average in the direction
	Beta2       float64 `torch:"beta2" default:"0.99" range:"[0,1)"` // weight of the average over time
	WeightDecay float64 `torch:"weight_decay" range:"[0,inf]"`       // decoupled: shrinks the parameter by LR times this
	DecoupleLR  bool    `torch:"decouple_lr"`                        // multiply WeightDecay by LR / MaxLR instead of LR
	MaxLR       float64 `torch:"max_lr,null" range:"[0,inf]"`        // the largest LR, for DecoupleLR; by default the first one
}

var optimiLion = elementwiseSpec(class[OptimiLionOptions]{
	name: "OptimiLion", uncounted: true,
	states:    []state{{key: "exp_avg"}},
	complete:  func(o *OptimiLionOptions) { completeMaxLR(&o.MaxLR, o.LR, o.DecoupleLR) },
	check:     func(o *OptimiLionOptions) error { return checkDecoupled("OptimiLion", o.DecoupleLR, o.MaxLR) },
	encodings: map[string]any{"max_lr": positive(0)},
}, (*OptimiLionOptions).scalars, f32.Lion, f64.Lion)

// OptimiLion is Lion with the averages as the Python package torch-optimi rounds them. Results are bit-for-bit equal to its Lion.
type OptimiLion[T Element] struct {
	OptimiLionOptions     // used by the next Step; may be changed between steps
	Workers           int // maximum number of threads of a Step; 0 means GOMAXPROCS
	elementwise[T, OptimiLionOptions, kernel.Lion]
}

// NewOptimiLion returns a new OptimiLion for params. The error wraps ErrOption or ErrParam.
func NewOptimiLion[T Element](params []*Param[T], o OptimiLionOptions) (*OptimiLion[T], error) {
	opt := &OptimiLion[T]{OptimiLionOptions: o}
	return made(opt, opt.begin(optimiLion, &opt.OptimiLionOptions, &opt.Workers, params))
}

func (o *OptimiLionOptions) scalars(c *stepContext) kernel.Lion {
	_, decay := c.optimiDecay(o.LR, o.WeightDecay, o.MaxLR, true, o.DecoupleLR)
	return lerpLion(c, decay, o.LR, [2]float64{o.Beta1, o.Beta2}, false)
}
