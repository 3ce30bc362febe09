package goptim

import (
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// RMSpropTFOptions are the hyperparameters of RMSpropTF.
type RMSpropTFOptions struct {
	LR                   float64 `torch:"lr" default:"1e-2" range:"[0,inf]"`   // learning rate
	Alpha                float64 `torch:"alpha" default:"0.9" range:"[0,inf]"` // decay rate of the averages
	Eps                  float64 `torch:"eps" default:"1e-10" range:"[0,inf]"` // added to the average of squares, under the root
	WeightDecay          float64 `torch:"weight_decay" range:"[0,inf]"`
	Momentum             float64 `torch:"momentum" range:"[0,inf]"`  // decay of the momentum buffer; 0 disables it
	Centered             bool    `torch:"centered"`                  // divide by the deviation from the average gradient
	DecoupledDecay       bool    `torch:"decoupled_decay"`           // shrink the parameter itself instead of adding the decay to the gradient
	CorrectedWeightDecay bool    `torch:"corrected_weight_decay"`    // multiply decoupled decay by LR^2 / MaxLR instead of LR
	LRInMomentum         bool    `torch:"lr_in_momentum"`            // the momentum buffer contains the learning rate, as in TensorFlow; timm's default is true
	Caution              bool    `torch:"caution"`                   // mask the elements of an update whose sign is not that of the gradient
	MaxLR                float64 `torch:"max_lr_snapshot" range:"-"` // the largest LR, for CorrectedWeightDecay; by default the first one
}

var rmspropTF = elementwiseSpec(class[RMSpropTFOptions]{
	name: "RMSpropTF",
	states: []state{
		{key: "square_avg", initial: 1}, {key: "momentum_buffer", when: "momentum", above: true}, {key: "grad_avg", when: "centered"},
	},
	complete: func(o *RMSpropTFOptions) { setMaxLR(&o.MaxLR, o.LR) },
	check:    func(o *RMSpropTFOptions) error { return checkMaxLR("RMSpropTF", o.CorrectedWeightDecay, o.MaxLR) },
}, (*RMSpropTFOptions).scalars, f32.RMSpropTF, f64.RMSpropTF).measuring(
	caution(func(h *kernel.RMSpropTF) *kernel.Caution { return &h.Caution }, f32.RMSpropTFAgrees, f64.RMSpropTFAgrees, true),
)

// RMSpropTF is RMSprop as in TensorFlow: Eps is under the root, and the average of squares begins with 1. See RMSprop. Results are
// bit-for-bit equal to timm.optim.RMSpropTF.
type RMSpropTF[T Element] struct {
	RMSpropTFOptions     // used by the next Step; may be changed between steps
	Workers          int // maximum number of threads of a Step; 0 means GOMAXPROCS
	elementwise[T, RMSpropTFOptions, kernel.RMSpropTF]
}

// NewRMSpropTF returns a new RMSpropTF for params. The error wraps ErrOption or ErrParam.
func NewRMSpropTF[T Element](params []*Param[T], o RMSpropTFOptions) (*RMSpropTF[T], error) {
	opt := &RMSpropTF[T]{RMSpropTFOptions: o}
	return made(opt, opt.begin(rmspropTF, &opt.RMSpropTFOptions, &opt.Workers, params))
}

func (o *RMSpropTFOptions) scalars(c *stepContext) kernel.RMSpropTF {
	h := kernel.RMSpropTF{
		Coupled: kernel.CoupledOf(false, 0), Decay: 1, Eps: o.Eps, Momentum: o.Momentum, LRInBuffer: kernel.Flag(o.LRInMomentum),
		Caution: kernel.CautionOf(o.Caution && o.Momentum > 0),
	}
	switch {
	case o.WeightDecay == 0:
	case o.DecoupledDecay:
		h.Decay = 1 - float64(c.decayRate(o.LR, o.MaxLR, o.CorrectedWeightDecay)*o.WeightDecay)
	default:
		h.Coupled = c.coupled(false, o.WeightDecay)
	}
	h.C, h.LR = c.narrow(1-o.Alpha), c.narrow(o.LR)
	return h
}
