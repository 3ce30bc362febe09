package goptim

import (
	"math"

	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// StableAdamWOptions are the hyperparameters of StableAdamW, and the number of its steps.
type StableAdamWOptions struct {
	LR          float64 `torch:"lr" default:"1e-3" range:"[0,inf]"`  // learning rate
	Beta1       float64 `torch:"beta1" default:"0.9" range:"[0,1)"`  // decay rate of the first moment
	Beta2       float64 `torch:"beta2" default:"0.99" range:"[0,1)"` // decay rate of the second moment
	WeightDecay float64 `torch:"weight_decay" range:"[0,inf]"`       // decoupled: shrinks the parameter by LR times this; optimi's default is 1e-2
	Eps         float64 `torch:"eps" default:"1e-6" range:"[0,inf]"` // added to the denominator
	DecoupleLR  bool    `torch:"decouple_lr"`                        // multiply WeightDecay by LR / MaxLR instead of LR
	MaxLR       float64 `torch:"max_lr,null" range:"[0,inf]"`        // the largest LR, for DecoupleLR; by default the first one
	Steps       int     `torch:"step"`                               // number of steps so far
}

// stableEpsSq is the index of StableAdamW's scalar state, the square of Eps at the first step.
const stableEpsSq = 2

var stableAdamW = elementwiseSpec(class[StableAdamWOptions]{
	name: "StableAdamW", uncounted: true,
	states:    []state{{key: "exp_avg"}, {key: "exp_avg_sq"}, stableEpsSq: {key: "eps_sq", scalar: true, typed: true, from: "eps", squared: true}},
	complete:  func(o *StableAdamWOptions) { completeMaxLR(&o.MaxLR, o.LR, o.DecoupleLR) },
	check:     func(o *StableAdamWOptions) error { return checkDecoupled("StableAdamW", o.DecoupleLR, o.MaxLR) },
	encodings: map[string]any{"max_lr": positive(0)},
	advance:   func(o *StableAdamWOptions, _ *stepContext) { o.Steps++ },
}, (*StableAdamWOptions).scalars, f32.StableAdamW, f64.StableAdamW).measuring(
	measure[kernel.StableAdamW]{
		f32: f32.StableAdamWSquares, f64: f64.StableAdamWSquares,
		needed: func(*kernel.StableAdamW) bool { return true },
		set:    stabilize,
	},
)

// StableAdamW is AdamW whose learning rate is divided by the root mean square of a parameter's normalized gradient, if that is above
// 1: Wortsman et al., "Stable and low-precision training for large-scale vision-language models", arXiv:2304.13013, Algorithm 2.
// Results are bit-for-bit equal to StableAdamW of the Python package torch-optimi.
type StableAdamW[T Element] struct {
	StableAdamWOptions     // used by the next Step; may be changed between steps
	Workers            int // maximum number of threads of a Step; 0 means GOMAXPROCS
	elementwise[T, StableAdamWOptions, kernel.StableAdamW]
}

// NewStableAdamW returns a new StableAdamW for params. The error wraps ErrOption or ErrParam.
func NewStableAdamW[T Element](params []*Param[T], o StableAdamWOptions) (*StableAdamW[T], error) {
	opt := &StableAdamW[T]{StableAdamWOptions: o}
	return made(opt, opt.begin(stableAdamW, &opt.StableAdamWOptions, &opt.Workers, params))
}

func (o *StableAdamWOptions) scalars(c *stepContext) kernel.StableAdamW {
	t := float64(o.Steps + 1)
	h := kernel.StableAdamW{
		Coupled: kernel.CoupledOf(false, 0), Beta2: c.debiased(o.Beta2, t), Eps: o.Eps, EpsSq: c.row.Number(stableEpsSq),
		LR: o.LR, WeightDecay: o.WeightDecay, Decay: 1,
	}
	h.C1, h.C2 = c.weight(1-c.debiased(o.Beta1, t)), c.narrow(1-h.Beta2)
	c.narrow(-o.LR) // the largest step
	if o.DecoupleLR && o.WeightDecay != 0 {
		c.quotient(o.LR, o.MaxLR)
		h.MaxLR = o.MaxLR
	}
	stabilize(&h, &measured{}) // of a parameter without elements
	return h
}

// stabilize sets the scalars that depend on the mean of the squares.
func stabilize(h *kernel.StableAdamW, m *measured) {
	lr := h.LR
	if rms := m.round(math.Sqrt(m.x)); rms > 1 { // not for a NaN
		lr /= rms
	}
	h.Step = -lr
	if h.WeightDecay != 0 {
		h.Decay = 1 - float64(decoupledRate(lr, h.MaxLR)*h.WeightDecay)
	}
}
