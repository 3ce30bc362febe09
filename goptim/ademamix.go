package goptim

import (
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// AdEMAMixOptions are the hyperparameters of AdEMAMix, and the number of its steps.
type AdEMAMixOptions struct {
	LR             float64    `torch:"lr" default:"1e-3" range:"[0,inf]"`                          // learning rate
	Betas          [3]float64 `torch:"betas" default:"0.9 0.999 0.9999" range:"[0,1) [0,1) [0,1]"` // decay rates of the fast average, of squares, and of the slow average
	WeightDecay    float64    `torch:"weight_decay" range:"[0,inf]"`
	WeightDecouple bool       `torch:"weight_decouple"`                    // shrink the parameter itself instead of adding the decay to the gradient
	FixedDecay     bool       `torch:"fixed_decay"`                        // shrink by WeightDecay instead of LR times it
	Alpha          float64    `torch:"alpha" default:"5" range:"[0,inf]"`  // weight of the slow average
	TAlphaBeta3    float64    `torch:"t_alpha_beta3,null" range:"[0,inf]"` // number of steps in which Alpha and Betas[2] grow to their values; 0 for constant ones
	Eps            float64    `torch:"eps" default:"1e-8" range:"[0,inf]"` // added to the denominator
	Maximize       bool       `torch:"maximize"`
	Steps          int        `torch:"step"` // number of steps so far
}

var ademamix = elementwiseSpec(class[AdEMAMixOptions]{
	name: "AdEMAMix", uncounted: true, results: []string{"step"},
	states:    []state{{key: "exp_avg"}, {key: "exp_avg_sq"}, {key: "exp_avg_slow"}},
	advance:   func(o *AdEMAMixOptions, _ *stepContext) { o.Steps++ },
	encodings: map[string]any{"t_alpha_beta3": positive(0)},
}, (*AdEMAMixOptions).scalars, f32.AdEMAMix, f64.AdEMAMix)

// AdEMAMix is the optimizer of Pagliardini, Ablin & Grangier, "The AdEMAMix Optimizer: Better, Faster, Older", arXiv:2409.03137,
// Algorithm 1. Results are bit-for-bit equal to AdEMAMix of the Python package pytorch_optimizer.
type AdEMAMix[T Element] struct {
	AdEMAMixOptions     // used by the next Step; may be changed between steps
	Workers         int // maximum number of threads of a Step; 0 means GOMAXPROCS
	elementwise[T, AdEMAMixOptions, kernel.AdEMAMix]
}

// NewAdEMAMix returns a new AdEMAMix for params. The error wraps ErrOption or ErrParam.
func NewAdEMAMix[T Element](params []*Param[T], o AdEMAMixOptions) (*AdEMAMix[T], error) {
	opt := &AdEMAMix[T]{AdEMAMixOptions: o}
	return made(opt, opt.begin(ademamix, &opt.AdEMAMixOptions, &opt.Workers, params))
}

func (o *AdEMAMixOptions) scalars(c *stepContext) kernel.AdEMAMix {
	beta1, beta2, beta3, alpha, t := o.Betas[0], o.Betas[1], o.Betas[2], o.Alpha, float64(o.Steps+1)
	h := kernel.AdEMAMix{Coupled: kernel.CoupledOf(o.Maximize, 0), Decay: 1, Lerps: 1, Beta2: beta2, Eps: o.Eps}
	h.BC1 = 1 - c.power(beta1, t, "ValueError")
	h.BC2Sqrt = c.divisor(c.sqrt(1 - c.power(beta2, t, "ValueError")))
	if o.TAlphaBeta3 != 0 {
		alpha = least(c.quotient(t*alpha, o.TAlphaBeta3), alpha)
		beta3 = c.warmBeta(t, o.TAlphaBeta3, beta1, beta3)
	}
	switch {
	case o.WeightDecouple && o.WeightDecay != 0:
		rate := o.LR
		if o.FixedDecay {
			rate = 1
		}
		h.Decay = 1 - float64(o.WeightDecay*rate)
	case o.WeightDecay > 0:
		h.Coupled = c.coupled(o.Maximize, o.WeightDecay)
	}
	h.W1, h.C2, h.W3 = c.weight(1-beta1), c.narrow(1-beta2), c.weight(1-beta3)
	h.Alpha = c.narrow(alpha)
	h.Step = c.narrow(-o.LR)
	return h
}

// warmBeta returns the decay rate of the slow average in step t of the steps in which its half-life grows linearly from that of
// beta1 to that of beta3: section 3 of the paper.
func (c *stepContext) warmBeta(t, steps, beta1, beta3 float64) float64 {
	log1, log3 := c.logarithm(beta1), c.logarithm(beta3)
	share := c.quotient(t, steps)
	return least(c.exponential(c.quotient(log1*log3, float64((1-share)*log3)+float64(share*log1))), beta3)
}

// least returns Python's min(x, y), which is x if one of them is NaN.
func least(x, y float64) float64 {
	if y < x {
		return y
	}
	return x
}
