package goptim

import (
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// BitsandbytesLionOptions are the hyperparameters of BitsandbytesLion.
type BitsandbytesLionOptions struct {
	LR          float64    `torch:"lr" default:"1e-4" range:"[0,inf]"`      // learning rate
	Betas       [2]float64 `torch:"betas" default:"0.9 0.99" range:"[0,1)"` // weights of the average, in the direction and over time
	WeightDecay float64    `torch:"weight_decay" range:"[0,inf]"`           // decoupled: shrinks the parameter by LR times this
}

var bitsandbytesLion = elementwiseSpec(class[BitsandbytesLionOptions]{
	name:    "BitsandbytesLion",
	integer: true,
	states:  []state{{key: "exp_avg", narrow: "float32"}},
}, (*BitsandbytesLionOptions).scalars, f32.Lion, f64.Lion)

// BitsandbytesLion is Lion with the state of the Python package bitsandbytes, which counts steps. The state of BFloat16 and Float16
// parameters is float32 by default. Results are bit-for-bit equal to bitsandbytes.optim.Lion on the CPU, which however computes
// float64 in float32.
type BitsandbytesLion[T Element] struct {
	BitsandbytesLionOptions     // used by the next Step; may be changed between steps
	Workers                 int // maximum number of threads of a Step; 0 means GOMAXPROCS
	elementwise[T, BitsandbytesLionOptions, kernel.Lion]
}

// NewBitsandbytesLion returns a new BitsandbytesLion for params. The error wraps ErrOption or ErrParam.
func NewBitsandbytesLion[T Element](params []*Param[T], o BitsandbytesLionOptions) (*BitsandbytesLion[T], error) {
	opt := &BitsandbytesLion[T]{BitsandbytesLionOptions: o}
	return made(opt, opt.begin(bitsandbytesLion, &opt.BitsandbytesLionOptions, &opt.Workers, params))
}

func (o *BitsandbytesLionOptions) scalars(c *stepContext) kernel.Lion {
	of := LionOptions{LR: o.LR, Betas: o.Betas}
	h := of.scalars(c)
	h.Decay = positiveDecay(o.LR, o.WeightDecay)
	return h
}
