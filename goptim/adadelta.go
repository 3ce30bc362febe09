package goptim

import (
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// AdadeltaOptions are the hyperparameters of Adadelta.
type AdadeltaOptions struct {
	LR          float64 `torch:"lr" default:"1" range:"[0,inf]"`     // learning rate
	Rho         float64 `torch:"rho" default:"0.9" range:"[0,1]"`    // decay rate of the averages of squares
	Eps         float64 `torch:"eps" default:"1e-6" range:"[0,inf]"` // added to the averages
	WeightDecay float64 `torch:"weight_decay" range:"[0,inf]"`       // added to the gradient, times the parameter
	Maximize    bool    `torch:"maximize"`
}

var adadelta = elementwiseSpec(class[AdadeltaOptions]{
	name:   "Adadelta",
	states: []state{{key: "square_avg"}, {key: "acc_delta"}},
}, (*AdadeltaOptions).scalars, f32.Adadelta, f64.Adadelta)

// Adadelta is the optimizer of Zeiler, "ADADELTA: An Adaptive Learning Rate Method", arXiv:1212.5701, Algorithm 1, with
// a learning rate. Results are bit-for-bit equal to torch.optim.Adadelta.
type Adadelta[T Element] struct {
	AdadeltaOptions     // used by the next Step; may be changed between steps
	Workers         int // maximum number of threads of a Step; 0 means GOMAXPROCS
	elementwise[T, AdadeltaOptions, kernel.Adadelta]
}

// NewAdadelta returns a new Adadelta for params. The error wraps ErrOption or ErrParam.
func NewAdadelta[T Element](params []*Param[T], o AdadeltaOptions) (*Adadelta[T], error) {
	opt := &Adadelta[T]{AdadeltaOptions: o}
	return made(opt, opt.begin(adadelta, &opt.AdadeltaOptions, &opt.Workers, params))
}

func (o *AdadeltaOptions) scalars(c *stepContext) kernel.Adadelta {
	return kernel.Adadelta{
		Coupled: c.coupled(o.Maximize, o.WeightDecay),
		Rho:     o.Rho,
		C:       c.narrow(1 - o.Rho),
		Eps:     o.Eps,
		Step:    c.narrow(-o.LR),
	}
}
