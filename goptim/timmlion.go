package goptim

import (
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// TimmLionOptions are the hyperparameters of TimmLion.
type TimmLionOptions struct {
	LR                   float64    `torch:"lr" default:"1e-4" range:"[0,inf]"`      // learning rate
	Betas                [2]float64 `torch:"betas" default:"0.9 0.99" range:"[0,1)"` // weights of the average, in the direction and over time
	WeightDecay          float64    `torch:"weight_decay" range:"[0,inf]"`           // decoupled: shrinks the parameter by LR times this
	Caution              bool       `torch:"caution"`                                // mask the elements of an update whose sign is not that of the gradient
	CorrectedWeightDecay bool       `torch:"corrected_weight_decay"`                 // multiply WeightDecay by LR^2 / MaxLR instead of LR
	Maximize             bool       `torch:"maximize"`
	MaxLR                float64    `torch:"max_lr_snapshot" range:"-"` // the largest LR, for CorrectedWeightDecay; by default the first one
}

var timmLion = elementwiseSpec(class[TimmLionOptions]{
	name: "TimmLion", uncounted: true,
	states:   []state{{key: "exp_avg"}},
	complete: func(o *TimmLionOptions) { setMaxLR(&o.MaxLR, o.LR) },
	check:    func(o *TimmLionOptions) error { return checkMaxLR("TimmLion", o.CorrectedWeightDecay, o.MaxLR) },
}, (*TimmLionOptions).scalars, f32.Lion, f64.Lion).measuring(
	caution(func(h *kernel.Lion) *kernel.Caution { return &h.Caution }, f32.LionAgrees, f64.LionAgrees, false),
)

// TimmLion is Lion with the averages as the Python package timm rounds them. Results are bit-for-bit equal to timm.optim.Lion.
type TimmLion[T Element] struct {
	TimmLionOptions     // used by the next Step; may be changed between steps
	Workers         int // maximum number of threads of a Step; 0 means GOMAXPROCS
	elementwise[T, TimmLionOptions, kernel.Lion]
}

// NewTimmLion returns a new TimmLion for params. The error wraps ErrOption or ErrParam.
func NewTimmLion[T Element](params []*Param[T], o TimmLionOptions) (*TimmLion[T], error) {
	opt := &TimmLion[T]{TimmLionOptions: o}
	return made(opt, opt.begin(timmLion, &opt.TimmLionOptions, &opt.Workers, params))
}

func (o *TimmLionOptions) scalars(c *stepContext) kernel.Lion {
	decay := 1 - float64(c.decayRate(o.LR, o.MaxLR, o.CorrectedWeightDecay)*o.WeightDecay)
	h := lerpLion(c, decay, o.LR, o.Betas, o.Maximize)
	h.Caution = kernel.CautionOf(o.Caution)
	return h
}

// lerpLion returns the scalars of Lion with averages that are lerps.
func lerpLion(c *stepContext, decay, lr float64, betas [2]float64, maximize bool) kernel.Lion {
	return kernel.Lion{
		Sign:  kernel.Sign(maximize),
		Decay: decay,
		Lerps: 1,
		W1:    c.weight(1 - betas[0]),
		W2:    c.weight(1 - betas[1]),
		Step:  c.narrow(-lr),
	}
}
