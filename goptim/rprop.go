package goptim

import (
	"math"

	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// RpropOptions are the hyperparameters of Rprop.
type RpropOptions struct {
	LR        float64    `torch:"lr" default:"1e-2" range:"[0,inf]"`              // the first step size
	Etas      [2]float64 `torch:"etas" default:"0.5 1.2" range:"(0,1) (1,inf]"`   // factors that shrink and grow a step size
	StepSizes [2]float64 `torch:"step_sizes" default:"1e-6 50" range:"[0,inf] -"` // the smallest and the largest step size
	Maximize  bool       `torch:"maximize"`
}

var rprop = elementwiseSpec(class[RpropOptions]{
	name:   "Rprop",
	states: []state{{key: "prev"}, {key: "step_size", from: "lr"}},
	check: func(o *RpropOptions) error {
		return require(o.StepSizes[1] >= o.StepSizes[0], "Rprop", "StepSizes[1]", o.StepSizes[1], "at least StepSizes[0]")
	},
}, (*RpropOptions).scalars, f32.Rprop, f64.Rprop)

// Rprop is the optimizer of Riedmiller & Braun, "A Direct Adaptive Method for Faster Backpropagation Learning: The
// RPROP Algorithm", ICNN 1993, without weight backtracking. Results are bit-for-bit equal to torch.optim.Rprop.
type Rprop[T Element] struct {
	RpropOptions     // used by the next Step; may be changed between steps
	Workers      int // maximum number of threads of a Step; 0 means GOMAXPROCS
	elementwise[T, RpropOptions, kernel.Rprop]
}

// NewRprop returns a new Rprop for params. The error wraps ErrOption or ErrParam.
func NewRprop[T Element](params []*Param[T], o RpropOptions) (*Rprop[T], error) {
	opt := &Rprop[T]{RpropOptions: o}
	return made(opt, opt.begin(rprop, &opt.RpropOptions, &opt.Workers, params))
}

func (o *RpropOptions) scalars(c *stepContext) kernel.Rprop {
	c.narrow(o.Etas[1])
	h := rpropFactors[float64](c.narrow(o.Etas[0]), o.Etas[1])
	if c.row.Arithmetic() == engine.Float32 {
		h = rpropFactors[float32](o.Etas[0], o.Etas[1])
	}
	h.Sign = kernel.Sign(o.Maximize)
	h.Min, h.Max = c.narrow(o.StepSizes[0]), c.narrow(o.StepSizes[1])
	if math.IsNaN(h.Min) || math.IsNaN(h.Max) {
		h.Unusual = 1
	}
	return h
}

// rpropFactors returns the factors of a step size. torch assigns them to a tensor of signs one after the other: a negative
// etaplus is replaced by etaminus, and a zero by 1.
func rpropFactors[T Float](etaMinus, etaPlus float64) kernel.Rprop {
	minus, plus := T(etaMinus), T(etaPlus)
	if plus < 0 {
		plus = minus
	}
	if plus == 0 {
		plus = 1
	}
	h := kernel.Rprop{EtaMinus: float64(minus), Plus: float64(plus), Minus: float64(minus)}
	if minus == 0 {
		h.Minus = 1
	}
	h.Unusual = kernel.Flag(minus == 0 || minus == 1 || minus == plus || minus != minus)
	return h
}
