package goptim

import (
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// LAMBOptions are the hyperparameters of LAMB.
type LAMBOptions struct {
	LR                   float64    `torch:"lr" default:"1e-3" range:"[0,inf]"`       // learning rate
	BiasCorrection       bool       `torch:"bias_correction"`                         // divide moments by 1-beta^t; timm's default is true
	Betas                [2]float64 `torch:"betas" default:"0.9 0.999" range:"[0,1]"` // decay rates of the moments
	Eps                  float64    `torch:"eps" default:"1e-6" range:"[0,inf]"`      // added to the denominator
	WeightDecay          float64    `torch:"weight_decay" range:"[0,inf]"`            // added to the update, times the parameter; timm's default is 0.01
	GradAveraging        bool       `torch:"grad_averaging"`                          // 1-beta multiplies the gradient in the first moment; timm's default is true
	MaxGradNorm          float64    `torch:"max_grad_norm,null" range:"[0,inf]"`      // largest norm of the gradients of all parameters; 0 for no bound; timm's default is 1
	TrustClip            bool       `torch:"trust_clip"`                              // LAMBC: the factor of an update is at most 1
	AlwaysAdapt          bool       `torch:"always_adapt"`                            // scale the update without WeightDecay too
	Caution              bool       `torch:"caution"`                                 // mask the elements of an update whose sign is not that of the gradient
	DecoupledDecay       bool       `torch:"decoupled_decay"`                         // shrink the parameter itself instead of adding the decay to the update
	CorrectedWeightDecay bool       `torch:"corrected_weight_decay"`                  // multiply decoupled decay by LR^2 / MaxLR instead of LR
	MaxLR                float64    `torch:"max_lr_snapshot" range:"-"`               // the largest LR, for CorrectedWeightDecay; by default the first one
	Steps                float64    `torch:"step"`                                    // number of steps
}

var lamb = elementwiseSpec(class[LAMBOptions]{
	name: "LAMB", uncounted: true, together: true,
	states:    []state{{key: "exp_avg"}, {key: "exp_avg_sq"}},
	complete:  func(o *LAMBOptions) { setMaxLR(&o.MaxLR, o.LR) },
	check:     func(o *LAMBOptions) error { return checkMaxLR("LAMB", o.CorrectedWeightDecay, o.MaxLR) },
	encodings: map[string]any{"max_grad_norm": positive(0)},
	advance:   func(o *LAMBOptions, _ *stepContext) { o.Steps++ },
}, (*LAMBOptions).scalars, f32.LAMB, f64.LAMB, orderOfNorms).measuring(
	caution(func(h *kernel.LAMB) *kernel.Caution { return &h.Caution }, f32.LAMBAgrees, f64.LAMBAgrees, false),
	measure[kernel.LAMB]{
		norm: true, needed: func(h *kernel.LAMB) bool { return h.Adapts != 0 && h.Decays == 0 },
		set: func(h *kernel.LAMB, m *measured) { h.ParamNorm = m.x },
	},
	measure[kernel.LAMB]{
		norm: true, f32: f32.LAMBDecayed, f64: f64.LAMBDecayed, param: true,
		needed: func(h *kernel.LAMB) bool { return h.Adapts != 0 && h.Decays != 0 },
		set:    func(h *kernel.LAMB, m *measured) { h.ParamNorm = m.x },
	},
	measure[kernel.LAMB]{
		norm: true, f32: f32.LAMBUpdate, f64: f64.LAMBUpdate, param: true,
		needed: func(h *kernel.LAMB) bool { return h.Adapts != 0 },
		set:    trustLAMB,
	},
).bounding(func(h *kernel.LAMB) (most float64, divisor *float64) { return h.MaxNorm, &h.Total })

// LAMB is the optimizer of You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", arXiv:1904.00962,
// Algorithm 2, with a bound of the norm of all gradients: that of the optimizer's parameters, not of Groups. With TrustClip it is
// LAMBC. Results are bit-for-bit equal to timm.optim.Lamb with foreach=False.
type LAMB[T Element] struct {
	LAMBOptions     // used by the next Step; may be changed between steps
	Workers     int // maximum number of threads of a Step; 0 means GOMAXPROCS
	elementwise[T, LAMBOptions, kernel.LAMB]
}

// NewLAMB returns a new LAMB for params. The error wraps ErrOption or ErrParam.
func NewLAMB[T Element](params []*Param[T], o LAMBOptions) (*LAMB[T], error) {
	opt := &LAMB[T]{LAMBOptions: o}
	return made(opt, opt.begin(lamb, &opt.LAMBOptions, &opt.Workers, params))
}

func (o *LAMBOptions) scalars(c *stepContext) kernel.LAMB {
	beta1, beta2, t := o.Betas[0], o.Betas[1], o.Steps+1
	h := kernel.LAMB{
		Caution: kernel.CautionOf(o.Caution), Total: 1, Beta1: beta1, Beta2: beta2, Eps: o.Eps, BC1: 1, Trust: 1,
		Clips: kernel.Flag(o.TrustClip), MaxNorm: o.MaxGradNorm,
	}
	bc2 := 1.0
	if o.BiasCorrection {
		h.BC1, bc2 = 1-c.power(beta1, t, "RuntimeError"), 1-c.power(beta2, t, "RuntimeError")
	}
	if o.GradAveraging || beta1 == 0 {
		h.Averages, h.C1 = 1, c.weight(1-beta1)
	}
	h.C2 = c.narrow(1 - beta2)
	h.BC2Sqrt = c.divisor(c.power(bc2, 0.5, "RuntimeError"))
	switch {
	case o.WeightDecay == 0:
	case o.DecoupledDecay:
		h.Decays, h.Decay = 1, c.narrow(-c.decayRate(o.LR, o.MaxLR, o.CorrectedWeightDecay)*o.WeightDecay)
	default:
		h.Couples, h.WeightDecay = 1, c.narrow(o.WeightDecay)
	}
	h.Adapts = kernel.Flag(o.WeightDecay != 0 || o.AlwaysAdapt)
	h.Step = c.narrow(-o.LR)
	return h
}

// trustLAMB sets the factor of the update from its norm.
func trustLAMB(h *kernel.LAMB, m *measured) {
	h.Trust = 1
	if h.ParamNorm > 0 && m.x > 0 {
		h.Trust = m.round(h.ParamNorm / m.x)
	}
	if h.Clips != 0 && h.Trust > 1 {
		h.Trust = 1
	}
}
