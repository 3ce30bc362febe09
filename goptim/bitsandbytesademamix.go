package goptim

import (
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// BitsandbytesAdEMAMixOptions are the hyperparameters of BitsandbytesAdEMAMix.
type BitsandbytesAdEMAMixOptions struct {
	LR          float64    `torch:"lr" default:"1e-3" range:"[0,inf]"`              // learning rate
	Betas       [3]float64 `torch:"betas" default:"0.9 0.999 0.9999" range:"[0,1)"` // decay rates of the fast average, of squares, and of the slow average
	Alpha       float64    `torch:"alpha" default:"5" range:"[-inf,inf]"`           // weight of the slow average
	TAlpha      float64    `torch:"t_alpha,null" range:"[0,inf]"`                   // number of steps in which Alpha grows to its value; 0 for a constant one
	TBeta3      float64    `torch:"t_beta3,null" range:"[0,inf]"`                   // the same for Betas[2]
	Eps         float64    `torch:"eps" default:"1e-8" range:"[0,inf]"`             // added to the denominator
	WeightDecay float64    `torch:"weight_decay" range:"[0,inf]"`                   // decoupled: shrinks the parameter by LR times this; bitsandbytes' default is 1e-2
}

var bitsandbytesAdEMAMix = elementwiseSpec(class[BitsandbytesAdEMAMixOptions]{
	name:    "BitsandbytesAdEMAMix",
	integer: true,
	states: []state{
		{key: "exp_avg", narrow: "float32"}, {key: "exp_avg_sq", narrow: "float32"}, {key: "exp_avg_slow", narrow: "float32"},
	},
	encodings: map[string]any{"t_alpha": positive(0), "t_beta3": positive(0)},
}, (*BitsandbytesAdEMAMixOptions).scalars, f32.AdEMAMix, f64.AdEMAMix)

// BitsandbytesAdEMAMix is AdEMAMix as the Python package bitsandbytes rounds it, with decoupled weight decay. See AdEMAMix. The
// states of BFloat16 and Float16 parameters are float32 by default. Results are bit-for-bit equal to bitsandbytes.optim.AdEMAMix on the
// CPU, which however computes float64 in float32.
type BitsandbytesAdEMAMix[T Element] struct {
	BitsandbytesAdEMAMixOptions     // used by the next Step; may be changed between steps
	Workers                     int // maximum number of threads of a Step; 0 means GOMAXPROCS
	elementwise[T, BitsandbytesAdEMAMixOptions, kernel.AdEMAMix]
}

// NewBitsandbytesAdEMAMix returns a new BitsandbytesAdEMAMix for params. The error wraps ErrOption or ErrParam.
func NewBitsandbytesAdEMAMix[T Element](params []*Param[T], o BitsandbytesAdEMAMixOptions) (*BitsandbytesAdEMAMix[T], error) {
	opt := &BitsandbytesAdEMAMix[T]{BitsandbytesAdEMAMixOptions: o}
	return made(opt, opt.begin(bitsandbytesAdEMAMix, &opt.BitsandbytesAdEMAMixOptions, &opt.Workers, params))
}

func (o *BitsandbytesAdEMAMixOptions) scalars(c *stepContext) kernel.AdEMAMix {
	beta1, beta2, beta3, alpha := o.Betas[0], o.Betas[1], o.Betas[2], o.Alpha
	if o.TAlpha != 0 {
		alpha = least(c.quotient(c.t*alpha, o.TAlpha), alpha)
	}
	if o.TBeta3 != 0 {
		beta3 = c.warmBeta(c.t, o.TBeta3, beta1, beta3)
	}
	h := kernel.AdEMAMix{
		Coupled: kernel.CoupledOf(false, 0), Decay: positiveDecay(o.LR, o.WeightDecay),
		Beta1: beta1, Beta2: beta2, Beta3: beta3, Alpha: alpha, Eps: o.Eps,
	}
	h.C1, h.C3, h.C2 = c.narrow(1-beta1), c.narrow(1-beta3), c.narrow(1-beta2)
	h.BC1 = 1 - c.power(beta1, c.t, "TypeError")
	h.BC2Sqrt = c.divisor(c.sqrt(1 - c.power(beta2, c.t, "TypeError")))
	h.Step = c.narrow(-o.LR)
	return h
}

// positiveDecay is decoupled for weight decay that bitsandbytes ignores unless it is above 0, which NaN is not.
func positiveDecay(lr, weightDecay float64) float64 {
	if weightDecay > 0 {
		return decoupled(lr, weightDecay)
	}
	return 1
}
