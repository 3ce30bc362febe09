package goptim

import (
	"encoding/json"
	"math"

	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// ADOPTOptions are the hyperparameters of ADOPT.
type ADOPTOptions struct {
	LR    float64    `torch:"lr" default:"1e-3" range:"[0,inf]"`        // learning rate
	Betas [2]float64 `torch:"betas" default:"0.9 0.9999" range:"[0,1)"` // decay rates of the moments
	Eps   float64    `torch:"eps" default:"1e-6" range:"[0,inf]"`       // smallest denominator
	// ClipExp is the exponent of the bound (t-1)^ClipExp of normalized gradients; infinity for no bound.
	ClipExp              float64 `torch:"clip_exp,null" default:"0.333" range:"[-inf,inf]"`
	WeightDecay          float64 `torch:"weight_decay" range:"[0,inf]"`
	Decoupled            bool    `torch:"decoupled"`              // shrink the parameter itself instead of adding the decay to the gradient
	CorrectedWeightDecay bool    `torch:"corrected_weight_decay"` // multiply WeightDecay by LR^2 / MaxLR instead of LR
	Caution              bool    `torch:"caution"`                // mask the elements of an update whose sign is not that of the gradient
	Maximize             bool    `torch:"maximize"`
	MaxLR                float64 `torch:"max_lr_snapshot" range:"-"` // the largest LR, for CorrectedWeightDecay; by default the first one
}

var adopt = elementwiseSpec(class[ADOPTOptions]{
	name:      "ADOPT",
	states:    []state{{key: "exp_avg"}, {key: "exp_avg_sq"}},
	complete:  func(o *ADOPTOptions) { setMaxLR(&o.MaxLR, o.LR) },
	check:     func(o *ADOPTOptions) error { return checkMaxLR("ADOPT", o.CorrectedWeightDecay, o.MaxLR) },
	encodings: map[string]any{"clip_exp": finite(0)},
}, (*ADOPTOptions).scalars, f32.ADOPT, f64.ADOPT).measuring(
	caution(func(h *kernel.ADOPT) *kernel.Caution { return &h.Caution }, f32.ADOPTAgrees, f64.ADOPTAgrees, true),
)

// ADOPT is the optimizer of Taniguchi et al., "ADOPT: Modified Adam Can Converge with Any β2 with the Optimal Rate",
// arXiv:2411.02853, Algorithm 2 with clipping. The first step of a parameter only initializes its state. Results are bit-for-bit
// equal to timm.optim.Adopt.
type ADOPT[T Element] struct {
	ADOPTOptions     // used by the next Step; may be changed between steps
	Workers      int // maximum number of threads of a Step; 0 means GOMAXPROCS
	elementwise[T, ADOPTOptions, kernel.ADOPT]
}

// NewADOPT returns a new ADOPT for params. The error wraps ErrOption or ErrParam.
func NewADOPT[T Element](params []*Param[T], o ADOPTOptions) (*ADOPT[T], error) {
	opt := &ADOPT[T]{ADOPTOptions: o}
	return made(opt, opt.begin(adopt, &opt.ADOPTOptions, &opt.Workers, params))
}

func (o *ADOPTOptions) scalars(c *stepContext) kernel.ADOPT {
	beta1, beta2 := o.Betas[0], o.Betas[1]
	h := kernel.ADOPT{Coupled: kernel.CoupledOf(o.Maximize, 0), Decay: math.Copysign(0, -1)}
	if !o.Decoupled {
		h.Coupled = c.coupled(o.Maximize, o.WeightDecay)
	}
	if c.t == 1 {
		h.First = 1
		return h
	}
	h.Caution = kernel.CautionOf(o.Caution)
	if o.Decoupled && o.WeightDecay != 0 {
		h.Decays, h.Decay = 1, c.narrow(-c.decayRate(o.LR, o.MaxLR, o.CorrectedWeightDecay)*o.WeightDecay)
	}
	h.Eps, h.Clip = c.narrow(o.Eps), math.Inf(1)
	if !math.IsInf(o.ClipExp, 1) {
		h.Clip = c.narrow(c.power(c.t-1, o.ClipExp, "TypeError"))
	}
	h.C1, h.Beta2 = c.weight(1-beta1), beta2
	h.Step, h.C2 = c.narrow(-o.LR), c.narrow(1-beta2)
	return h
}

// finite is a float64 that is null in JSON if it is infinite.
type finite float64

func (x finite) MarshalJSON() ([]byte, error) {
	if math.IsInf(float64(x), 0) {
		return []byte("null"), nil
	}
	return number(x).MarshalJSON()
}

func (x *finite) UnmarshalJSON(data []byte) error {
	if string(data) == "null" {
		*x = finite(math.Inf(1))
		return nil
	}
	return json.Unmarshal(data, (*number)(x))
}
