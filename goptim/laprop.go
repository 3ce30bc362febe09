package goptim

import (
	"math"

	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// LaPropOptions are the hyperparameters of LaProp.
type LaPropOptions struct {
	LR                   float64    `torch:"lr" default:"4e-4" range:"[0,inf]"`       // learning rate
	Betas                [2]float64 `torch:"betas" default:"0.9 0.999" range:"[0,1)"` // decay rates of the moments
	Eps                  float64    `torch:"eps" default:"1e-15" range:"[0,inf]"`     // added to the denominator
	WeightDecay          float64    `torch:"weight_decay" range:"[-inf,inf]"`         // decoupled, after the update
	Caution              bool       `torch:"caution"`                                 // mask the elements of an update whose sign is not that of the gradient
	CorrectedWeightDecay bool       `torch:"corrected_weight_decay"`                  // multiply WeightDecay by LR^2 / MaxLR instead of LR
	MaxLR                float64    `torch:"max_lr_snapshot" range:"-"`               // the largest LR, for CorrectedWeightDecay; by default the first one
}

// The scalar states of LaProp.
const lapropLR1, lapropLR2 = 0, 1

var laprop = elementwiseSpec(class[LaPropOptions]{
	name:     "LaProp",
	states:   []state{{key: "exp_avg_lr_1", double: true}, {key: "exp_avg_lr_2", scalar: true}, {key: "exp_avg"}, {key: "exp_avg_sq"}},
	complete: func(o *LaPropOptions) { setMaxLR(&o.MaxLR, o.LR) },
	check:    func(o *LaPropOptions) error { return checkMaxLR("LaProp", o.CorrectedWeightDecay, o.MaxLR) },
}, (*LaPropOptions).scalars, f32.LaProp, f64.LaProp).measuring(
	caution(func(h *kernel.LaProp) *kernel.Caution { return &h.Caution }, f32.LaPropAgrees, f64.LaPropAgrees, false),
)

// LaProp is the optimizer of Ziyin, Wang & Ueda, "LaProp: Separating Momentum and Adaptivity in Adam", arXiv:2002.04839, Algorithm 1.
// Results are bit-for-bit equal to timm.optim.LaProp.
type LaProp[T Element] struct {
	LaPropOptions     // used by the next Step; may be changed between steps
	Workers       int // maximum number of threads of a Step; 0 means GOMAXPROCS
	elementwise[T, LaPropOptions, kernel.LaProp]
}

// NewLaProp returns a new LaProp for params. The error wraps ErrOption or ErrParam.
func NewLaProp[T Element](params []*Param[T], o LaPropOptions) (*LaProp[T], error) {
	opt := &LaProp[T]{LaPropOptions: o}
	return made(opt, opt.begin(laprop, &opt.LaPropOptions, &opt.Workers, params))
}

func (o *LaPropOptions) scalars(c *stepContext) kernel.LaProp {
	beta1, beta2 := o.Betas[0], o.Betas[1]
	h := kernel.LaProp{
		Coupled: kernel.CoupledOf(false, 0), Beta1: beta1, Beta2: beta2, Eps: o.Eps, Decay: math.Copysign(0, -1),
		Caution: kernel.CautionOf(o.Caution),
	}
	lr1 := c.setNumber(lapropLR1, float64(c.row.Number(lapropLR1)*beta1)+float64((1-beta1)*o.LR))
	d := c.row.StateType[lapropLR2]
	h.BC2 = c.setNumber(lapropLR2, d.Round(d.Round(c.row.Number(lapropLR2)*d.Round(beta2))+d.Round(1-beta2)))
	step := 0.0
	if lr1 != 0 {
		step = o.LR / lr1
	}
	h.C2, h.C1, h.Step = c.narrow(1-beta2), c.narrow(o.LR*(1-beta1)), c.narrow(-step)
	if o.WeightDecay != 0 {
		h.Decays, h.Decay = 1, c.narrow(-c.decayRate(o.LR, o.MaxLR, o.CorrectedWeightDecay)*o.WeightDecay)
	}
	return h
}
