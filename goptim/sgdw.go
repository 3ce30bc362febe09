package goptim

import (
	"errors"
	"fmt"

	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// SGDWOptions are the hyperparameters of SGDW.
type SGDWOptions struct {
	LR                   float64 `torch:"lr" default:"1e-3" range:"[0,inf]"` // learning rate
	Momentum             float64 `torch:"momentum" range:"[0,inf]"`          // decay of the momentum buffer; 0 disables it
	Dampening            float64 `torch:"dampening" range:"[-inf,inf]"`      // 1-Dampening multiplies the gradient in the buffer, except the first one
	WeightDecay          float64 `torch:"weight_decay" range:"[0,inf]"`      // decoupled: shrinks the parameter by LR times this
	Nesterov             bool    `torch:"nesterov"`                          // requires Momentum and zero Dampening
	Caution              bool    `torch:"caution"`                           // mask the elements of an update whose sign is not that of the gradient
	CorrectedWeightDecay bool    `torch:"corrected_weight_decay"`            // multiply WeightDecay by LR^2 / MaxLR instead of LR
	Maximize             bool    `torch:"maximize"`
	MaxLR                float64 `torch:"max_lr_snapshot" range:"-"` // the largest LR, for CorrectedWeightDecay; by default the first one
}

var sgdw = elementwiseSpec(class[SGDWOptions]{
	name: "SGDW", uncounted: true,
	states:   []state{{key: "momentum_buffer", when: "momentum"}},
	complete: func(o *SGDWOptions) { setMaxLR(&o.MaxLR, o.LR) },
	check: func(o *SGDWOptions) error {
		err := checkMaxLR("SGDW", o.CorrectedWeightDecay, o.MaxLR)
		if o.Nesterov && (o.Momentum <= 0 || o.Dampening != 0) {
			err = errors.Join(err, fmt.Errorf("goptim: SGDW: Nesterov needs a Momentum above 0 and no Dampening: %w", ErrOption))
		}
		return err
	},
}, (*SGDWOptions).scalars, f32.SGDW, f64.SGDW).measuring(
	caution(func(h *kernel.SGDW) *kernel.Caution { return &h.Caution }, f32.SGDWAgrees, f64.SGDWAgrees, false),
)

// SGDW is SGD with the decoupled weight decay of Loshchilov & Hutter, "Decoupled Weight Decay Regularization", arXiv:1711.05101,
// Algorithm 1. Results are bit-for-bit equal to timm.optim.SGDW.
type SGDW[T Element] struct {
	SGDWOptions     // used by the next Step; may be changed between steps
	Workers     int // maximum number of threads of a Step; 0 means GOMAXPROCS
	elementwise[T, SGDWOptions, kernel.SGDW]
}

// NewSGDW returns a new SGDW for params. The error wraps ErrOption or ErrParam.
func NewSGDW[T Element](params []*Param[T], o SGDWOptions) (*SGDW[T], error) {
	opt := &SGDW[T]{SGDWOptions: o}
	return made(opt, opt.begin(sgdw, &opt.SGDWOptions, &opt.Workers, params))
}

func (o *SGDWOptions) scalars(c *stepContext) kernel.SGDW {
	h := kernel.SGDW{Caution: kernel.CautionOf(o.Caution && o.Momentum != 0), Decay: 1 - float64(c.decayRate(o.LR, o.MaxLR, o.CorrectedWeightDecay)*o.WeightDecay)}
	of := SGDOptions{LR: o.LR, Momentum: o.Momentum, Dampening: o.Dampening, Nesterov: o.Nesterov, Maximize: o.Maximize}
	h.SGD = of.scalars(c)
	return h
}
