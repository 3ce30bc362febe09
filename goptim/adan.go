package goptim

import (
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// AdanOptions are the hyperparameters of Adan, and the number of its steps.
type AdanOptions struct {
	LR          float64    `torch:"lr" default:"1e-3" range:"[0,inf]"`            // learning rate
	Betas       [3]float64 `torch:"betas" default:"0.98 0.92 0.99" range:"[0,1)"` // decay rates of the averages of gradients, of their changes, and of squares
	Eps         float64    `torch:"eps" default:"1e-8" range:"[0,inf]"`           // added to the denominator
	WeightDecay float64    `torch:"weight_decay" range:"[-inf,inf]"`              // divides the parameter by 1 + LR times this
	NoProx      bool       `torch:"no_prox"`                                      // multiply the parameter by 1 - LR*WeightDecay instead
	Caution     bool       `torch:"caution"`                                      // mask the elements of an update whose sign is not that of the gradient
	Steps       int        `torch:"step"`                                         // number of steps so far
}

var adan = elementwiseSpec(class[AdanOptions]{
	name: "Adan", uncounted: true, results: []string{"step"},
	states:  []state{{key: "exp_avg"}, {key: "exp_avg_sq"}, {key: "exp_avg_diff"}, {key: "neg_pre_grad"}},
	advance: func(o *AdanOptions, _ *stepContext) { o.Steps++ },
}, (*AdanOptions).scalars, f32.Adan, f64.Adan).measuring(
	caution(func(h *kernel.Adan) *kernel.Caution { return &h.Caution }, f32.AdanAgrees, f64.AdanAgrees, false),
)

// Adan is the optimizer of Xie et al., "Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models",
// arXiv:2208.06677, Algorithm 1. Results are bit-for-bit equal to timm.optim.Adan.
type Adan[T Element] struct {
	AdanOptions     // used by the next Step; may be changed between steps
	Workers     int // maximum number of threads of a Step; 0 means GOMAXPROCS
	elementwise[T, AdanOptions, kernel.Adan]
}

// NewAdan returns a new Adan for params. The error wraps ErrOption or ErrParam.
func NewAdan[T Element](params []*Param[T], o AdanOptions) (*Adan[T], error) {
	opt := &Adan[T]{AdanOptions: o}
	return made(opt, opt.begin(adan, &opt.AdanOptions, &opt.Workers, params))
}

func (o *AdanOptions) scalars(c *stepContext) kernel.Adan {
	beta1, beta2, beta3, t := o.Betas[0], o.Betas[1], o.Betas[2], float64(o.Steps+1)
	h := kernel.Adan{
		Coupled: kernel.CoupledOf(false, 0), First: kernel.Flag(c.row.First() || o.Steps == 0), Decay: 1, Shrink: 1, Beta2: beta2, Beta3: beta3, Eps: o.Eps,
		Caution: kernel.CautionOf(o.Caution),
	}
	bc1, bc2, bc3 := 1-c.power(beta1, t, "TypeError"), 1-c.power(beta2, t, "TypeError"), 1-c.power(beta3, t, "TypeError")
	h.BC3Sqrt = c.divisor(c.sqrt(bc3))
	h.C1, h.C2, h.C3 = c.weight(1-beta1), c.narrow(1-beta2), c.narrow(1-beta3)
	h.StepDiff = c.narrow(-c.quotient(o.LR*beta2, bc2))
	h.Step = c.narrow(-c.quotient(o.LR, bc1))
	if o.NoProx {
		h.Decay = 1 - float64(o.LR*o.WeightDecay)
	} else {
		h.Shrink = 1 + float64(o.LR*o.WeightDecay)
	}
	return h
}
