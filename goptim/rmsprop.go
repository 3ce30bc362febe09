package goptim

import (
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// RMSpropOptions are the hyperparameters of RMSprop.
type RMSpropOptions struct {
	LR          float64 `torch:"lr" default:"1e-2" range:"[0,inf]"`    // learning rate
	Alpha       float64 `torch:"alpha" default:"0.99" range:"[0,inf]"` // decay rate of the average of squares
	Eps         float64 `torch:"eps" default:"1e-8" range:"[0,inf]"`   // added to the denominator
	WeightDecay float64 `torch:"weight_decay" range:"[0,inf]"`         // added to the gradient, times the parameter
	Momentum    float64 `torch:"momentum" range:"[0,inf]"`             // decay of the momentum buffer; 0 disables it
	Centered    bool    `torch:"centered"`                             // divide by the deviation from the average gradient
	Maximize    bool    `torch:"maximize"`
}

var rmsprop = elementwiseSpec(class[RMSpropOptions]{
	name: "RMSprop",
	states: []state{
		{key: "square_avg"}, {key: "momentum_buffer", when: "momentum", above: true}, {key: "grad_avg", when: "centered"},
	},
}, (*RMSpropOptions).scalars, f32.RMSprop, f64.RMSprop)

// RMSprop is the optimizer of Tieleman & Hinton, "Lecture 6.5", COURSERA: Neural Networks for Machine Learning (2012);
// Centered, of Graves, "Generating Sequences With Recurrent Neural Networks", arXiv:1308.0850; eps is added to the
// root, as torch does. Results are bit-for-bit equal to torch.optim.RMSprop.
type RMSprop[T Element] struct {
	RMSpropOptions     // used by the next Step; may be changed between steps
	Workers        int // maximum number of threads of a Step; 0 means GOMAXPROCS
	elementwise[T, RMSpropOptions, kernel.RMSprop]
}

// NewRMSprop returns a new RMSprop for params. The error wraps ErrOption or ErrParam.
func NewRMSprop[T Element](params []*Param[T], o RMSpropOptions) (*RMSprop[T], error) {
	opt := &RMSprop[T]{RMSpropOptions: o}
	return made(opt, opt.begin(rmsprop, &opt.RMSpropOptions, &opt.Workers, params))
}

func (o *RMSpropOptions) scalars(c *stepContext) kernel.RMSprop {
	return kernel.RMSprop{
		Coupled:  c.coupled(o.Maximize, o.WeightDecay),
		Alpha:    o.Alpha,
		C:        c.narrow(1 - o.Alpha),
		Centre:   c.weight(1 - o.Alpha),
		Eps:      o.Eps,
		Momentum: o.Momentum,
		Step:     c.narrow(-o.LR),
	}
}
