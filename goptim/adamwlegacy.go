package goptim

import (
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// AdamWLegacyOptions are the hyperparameters of AdamWLegacy.
type AdamWLegacyOptions struct {
	LR                   float64    `torch:"lr" default:"1e-3" range:"[0,inf]"`       // learning rate
	Betas                [2]float64 `torch:"betas" default:"0.9 0.999" range:"[0,1)"` // decay rates of the moments
	Eps                  float64    `torch:"eps" default:"1e-8" range:"[0,inf]"`      // added to the denominator
	WeightDecay          float64    `torch:"weight_decay" range:"[-inf,inf]"`         // decoupled: shrinks the parameter by LR times this; timm's default is 1e-2
	AMSGrad              bool       `torch:"amsgrad"`                                 // divide by the largest second moment so far
	Caution              bool       `torch:"caution"`                                 // mask the elements of an update whose sign is not that of the gradient
	CorrectedWeightDecay bool       `torch:"corrected_weight_decay"`                  // multiply WeightDecay by LR^2 / MaxLR instead of LR
	Maximize             bool       `torch:"maximize"`
	ClippingThreshold    float64    `torch:"clipping_threshold,null" range:"[0,inf]"` // largest root mean square of an update; 0 for no bound
	MaxLR                float64    `torch:"max_lr_snapshot" range:"-"`               // the largest LR, for CorrectedWeightDecay; by default the first one
}

var adamwLegacy = elementwiseSpec(class[AdamWLegacyOptions]{
	name:      "AdamWLegacy",
	states:    []state{{key: "exp_avg"}, {key: "exp_avg_sq"}, {key: "max_exp_avg_sq", when: "amsgrad"}},
	complete:  func(o *AdamWLegacyOptions) { setMaxLR(&o.MaxLR, o.LR) },
	check:     func(o *AdamWLegacyOptions) error { return checkMaxLR("AdamWLegacy", o.CorrectedWeightDecay, o.MaxLR) },
	encodings: map[string]any{"clipping_threshold": positive(0)},
}, (*AdamWLegacyOptions).scalars, f32.AdamWLegacy, f64.AdamWLegacy, orderOfNorms).measuring(
	clipping(func(h *kernel.AdamWLegacy) *kernel.Clipping { return &h.Clipping }, f32.AdamWQuotient, f64.AdamWQuotient),
	caution(func(h *kernel.AdamWLegacy) *kernel.Caution { return &h.Caution }, f32.AdamWAgrees, f64.AdamWAgrees, false),
)

// AdamWLegacy is AdamW with the options of timm: the masks of Liang et al., "Cautious Optimizers", arXiv:2411.16085, Algorithm 1, the
// bound of an update of Wortsman et al., "Stable and low-precision training for large-scale vision-language models",
// arXiv:2304.13013, and the weight decay of Defazio, "Why Gradients Rapidly Increase Near the End of Training", arXiv:2506.02285.
// See NewAdamW for AdamW without them. Results are bit-for-bit equal to timm.optim.AdamWLegacy.
type AdamWLegacy[T Element] struct {
	AdamWLegacyOptions     // used by the next Step; may be changed between steps
	Workers            int // maximum number of threads of a Step; 0 means GOMAXPROCS
	elementwise[T, AdamWLegacyOptions, kernel.AdamWLegacy]
}

// NewAdamWLegacy returns a new AdamWLegacy for params. The error wraps ErrOption or ErrParam.
func NewAdamWLegacy[T Element](params []*Param[T], o AdamWLegacyOptions) (*AdamWLegacy[T], error) {
	opt := &AdamWLegacy[T]{AdamWLegacyOptions: o}
	return made(opt, opt.begin(adamwLegacy, &opt.AdamWLegacyOptions, &opt.Workers, params))
}

func (o *AdamWLegacyOptions) scalars(c *stepContext) kernel.AdamWLegacy {
	h := kernel.AdamWLegacy{Caution: kernel.CautionOf(o.Caution), Clipping: kernel.ClippingOf(o.ClippingThreshold)}
	decay := 1 - float64(c.decayRate(o.LR, o.MaxLR, o.CorrectedWeightDecay)*o.WeightDecay)
	of := AdamOptions{LR: o.LR, Betas: o.Betas, Eps: o.Eps, Maximize: o.Maximize}
	h.Adam = of.scalars(c)
	h.Decay = decay
	return h
}
