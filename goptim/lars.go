package goptim

import (
	"fmt"

	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// LARSOptions are the hyperparameters of LARS.
type LARSOptions struct {
	LR          float64 `torch:"lr" default:"1" range:"[0,inf]"`                // learning rate
	Momentum    float64 `torch:"momentum" range:"[0,inf]"`                      // decay of the momentum buffer; 0 disables it
	Dampening   float64 `torch:"dampening" range:"[-inf,inf]"`                  // 1-Dampening multiplies the gradient in the buffer, except the first one
	WeightDecay float64 `torch:"weight_decay" range:"[0,inf]"`                  // added to the gradient, times the parameter
	Nesterov    bool    `torch:"nesterov"`                                      // requires Momentum and zero Dampening
	TrustCoeff  float64 `torch:"trust_coeff" default:"1e-3" range:"[-inf,inf]"` // of the ratio of the norms of the parameter and the gradient
	Eps         float64 `torch:"eps" default:"1e-8" range:"[-inf,inf]"`         // added to the norm of the gradient
	TrustClip   bool    `torch:"trust_clip"`                                    // LARC: the ratio divided by LR is at most 1
	AlwaysAdapt bool    `torch:"always_adapt"`                                  // adapt the gradient without WeightDecay too
}

var lars = elementwiseSpec(class[LARSOptions]{
	name: "LARS", uncounted: true,
	states: []state{{key: "momentum_buffer", when: "momentum"}},
	check: func(o *LARSOptions) error {
		if o.Nesterov && (o.Momentum <= 0 || o.Dampening != 0) {
			return fmt.Errorf("goptim: LARS: Nesterov needs a Momentum above 0 and no Dampening: %w", ErrOption)
		}
		return nil
	},
}, (*LARSOptions).scalars, f32.LARS, f64.LARS, orderOfNorms).measuring(
	measure[kernel.LARS]{norm: true, needed: adaptsLARS, set: func(h *kernel.LARS, m *measured) { h.ParamNorm = m.x }},
	measure[kernel.LARS]{norm: true, grad: true, needed: adaptsLARS, set: trustLARS},
)

// LARS is the optimizer of You, Gitman & Ginsburg, "Large Batch Training of Convolutional Networks", arXiv:1708.03888, Algorithm 1:
// SGD whose gradients are scaled by the ratio of two norms. With TrustClip it is LARC. Results are bit-for-bit equal to
// timm.optim.Lars with foreach=False.
type LARS[T Element] struct {
	LARSOptions     // used by the next Step; may be changed between steps
	Workers     int // maximum number of threads of a Step; 0 means GOMAXPROCS
	elementwise[T, LARSOptions, kernel.LARS]
}

// NewLARS returns a new LARS for params. The error wraps ErrOption or ErrParam.
func NewLARS[T Element](params []*Param[T], o LARSOptions) (*LARS[T], error) {
	opt := &LARS[T]{LARSOptions: o}
	return made(opt, opt.begin(lars, &opt.LARSOptions, &opt.Workers, params))
}

func (o *LARSOptions) scalars(c *stepContext) kernel.LARS {
	adapts := o.WeightDecay != 0 || o.AlwaysAdapt
	h := kernel.LARS{
		Adapts: kernel.Flag(adapts), Trust: 1, TrustCoeff: o.TrustCoeff, Eps: o.Eps, LR: o.LR, Clips: kernel.Flag(o.TrustClip),
		First: kernel.Flag(c.row.First()), Momentum: o.Momentum, C: 1 - o.Dampening, Nesterov: kernel.Flag(o.Nesterov),
	}
	if adapts {
		h.WeightDecay = c.narrow(o.WeightDecay)
	}
	if o.Momentum != 0 && !c.row.First() {
		c.narrow(1 - o.Dampening)
	}
	if o.Momentum != 0 && o.Nesterov {
		c.narrow(o.Momentum)
	}
	h.Step = c.narrow(-o.LR)
	return h
}

func adaptsLARS(h *kernel.LARS) bool { return h.Adapts != 0 }

// trustLARS sets the factor of the gradient from its norm.
func trustLARS(h *kernel.LARS, m *measured) {
	r := m.round
	h.Trust = 1
	if h.ParamNorm > 0 && m.x > 0 {
		sum := r(r(m.x+r(h.ParamNorm*r(h.WeightDecay))) + r(h.Eps))
		h.Trust = r(r(r(h.TrustCoeff)*h.ParamNorm) / sum)
	}
	if h.Clips != 0 {
		if h.Trust = r(h.Trust / r(h.LR)); h.Trust > 1 { // a NaN stays
			h.Trust = 1
		}
	}
}
