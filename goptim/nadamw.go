package goptim

import (
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// NAdamWOptions are the hyperparameters of NAdamW.
type NAdamWOptions struct {
	LR                   float64    `torch:"lr" default:"1e-3" range:"[0,inf]"`       // learning rate
	Betas                [2]float64 `torch:"betas" default:"0.9 0.999" range:"[0,1)"` // decay rates of the moments
	Eps                  float64    `torch:"eps" default:"1e-8" range:"[0,inf]"`      // added to the denominator
	WeightDecay          float64    `torch:"weight_decay" range:"[0,inf]"`            // decoupled: shrinks the parameter by LR times this; timm's default is 1e-2
	Caution              bool       `torch:"caution"`                                 // mask the elements of an update whose sign is not that of the gradient
	CorrectedWeightDecay bool       `torch:"corrected_weight_decay"`                  // multiply WeightDecay by LR^2 / MaxLR instead of LR
	Maximize             bool       `torch:"maximize"`
	ClippingThreshold    float64    `torch:"clipping_threshold,null" range:"[0,inf]"` // largest root mean square of an update; 0 for no bound
	MaxLR                float64    `torch:"max_lr_snapshot" range:"-"`               // the largest LR, for CorrectedWeightDecay; by default the first one
}

var nadamw = elementwiseSpec(class[NAdamWOptions]{
	name:      "NAdamW",
	states:    []state{{key: "exp_avg"}, {key: "exp_avg_sq"}},
	complete:  func(o *NAdamWOptions) { setMaxLR(&o.MaxLR, o.LR) },
	check:     func(o *NAdamWOptions) error { return checkMaxLR("NAdamW", o.CorrectedWeightDecay, o.MaxLR) },
	encodings: map[string]any{"clipping_threshold": positive(0)},
}, (*NAdamWOptions).scalars, f32.NAdamW, f64.NAdamW, orderOfNorms).measuring(
	clipping(func(h *kernel.NAdamW) *kernel.Clipping { return &h.Clipping }, f32.NAdamWQuotient, f64.NAdamWQuotient),
	caution(func(h *kernel.NAdamW) *kernel.Caution { return &h.Caution }, f32.NAdamWAgrees, f64.NAdamWAgrees, false),
)

// NAdamW is AdamW with Nesterov's momentum, in the form of Choi et al., "On Empirical Comparisons of Optimizers for Deep Learning",
// arXiv:1910.05446, Table 1. Results are bit-for-bit equal to timm.optim.NAdamW.
type NAdamW[T Element] struct {
	NAdamWOptions     // used by the next Step; may be changed between steps
	Workers       int // maximum number of threads of a Step; 0 means GOMAXPROCS
	elementwise[T, NAdamWOptions, kernel.NAdamW]
}

// NewNAdamW returns a new NAdamW for params. The error wraps ErrOption or ErrParam.
func NewNAdamW[T Element](params []*Param[T], o NAdamWOptions) (*NAdamW[T], error) {
	opt := &NAdamW[T]{NAdamWOptions: o}
	return made(opt, opt.begin(nadamw, &opt.NAdamWOptions, &opt.Workers, params))
}

func (o *NAdamWOptions) scalars(c *stepContext) kernel.NAdamW {
	beta1, beta2 := o.Betas[0], o.Betas[1]
	h := kernel.NAdamW{
		Coupled: kernel.CoupledOf(o.Maximize, 0), Caution: kernel.CautionOf(o.Caution), Clipping: kernel.ClippingOf(o.ClippingThreshold),
		Decay: 1 - float64(c.decayRate(o.LR, o.MaxLR, o.CorrectedWeightDecay)*o.WeightDecay),
		C1:    c.weight(1 - beta1),
		Beta2: beta2,
		C2:    c.narrow(1 - beta2),
		Eps:   o.Eps,
	}
	bc1, bc2 := 1-c.power(beta1, c.t, "RuntimeError"), 1-c.power(beta2, c.t, "RuntimeError")
	step := c.quotient(o.LR, bc1)
	h.BC2Sqrt = c.divisor(c.power(bc2, 0.5, "RuntimeError"))
	h.Step = c.narrow(-step)
	return h
}
