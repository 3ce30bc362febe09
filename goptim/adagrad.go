package goptim

import (
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// AdagradOptions are the hyperparameters of Adagrad.
type AdagradOptions struct {
	LR                      float64 `torch:"lr" default:"1e-2" range:"[0,inf]"`                 // learning rate
	LRDecay                 float64 `torch:"lr_decay" range:"[0,inf]"`                          // the learning rate of step t is LR / (1 + (t-1)*LRDecay)
	WeightDecay             float64 `torch:"weight_decay" range:"[0,inf]"`                      // added to the gradient, times the parameter
	InitialAccumulatorValue float64 `torch:"initial_accumulator_value,initial" range:"[0,inf]"` // of the sum of squares
	Eps                     float64 `torch:"eps" default:"1e-10" range:"[0,inf]"`               // added to the denominator
	Maximize                bool    `torch:"maximize"`
}

var adagrad = elementwiseSpec(class[AdagradOptions]{
	name:   "Adagrad",
	states: []state{{key: "sum", from: "initial_accumulator_value"}},
}, (*AdagradOptions).scalars, f32.Adagrad, f64.Adagrad)

// Adagrad is the optimizer of Duchi, Hazan & Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic
// Optimization", JMLR 12 (2011), with a diagonal matrix. Results are bit-for-bit equal to torch.optim.Adagrad.
type Adagrad[T Element] struct {
	AdagradOptions     // used by the next Step; may be changed between steps
	Workers        int // maximum number of threads of a Step; 0 means GOMAXPROCS
	elementwise[T, AdagradOptions, kernel.Adagrad]
}

// NewAdagrad returns a new Adagrad for params. The error wraps ErrOption or ErrParam.
func NewAdagrad[T Element](params []*Param[T], o AdagradOptions) (*Adagrad[T], error) {
	opt := &Adagrad[T]{AdagradOptions: o}
	return made(opt, opt.begin(adagrad, &opt.AdagradOptions, &opt.Workers, params))
}

var sparseAdagrad = sparseSpecOf(&adagrad.class, sparseRule{name: "SparseAdagrad", sums: true, zeros: []string{"weight_decay"}},
	(*AdagradOptions).scalars, f32.SparseAdagrad, f64.SparseAdagrad)

// SparseAdagrad is Adagrad for the rows that have a gradient. The gradients of a repeated row are summed. Results are
// bit-for-bit equal to torch.optim.Adagrad with sparse gradients, which rounds differently from dense ones.
type SparseAdagrad[T Element] struct {
	AdagradOptions     // used by the next Step; may be changed between steps
	Workers        int // maximum number of threads of a Step; 0 means GOMAXPROCS
	sparse[T, AdagradOptions, kernel.Adagrad]
}

// NewSparseAdagrad returns a new SparseAdagrad for params. WeightDecay must be 0, because it would also update the
// rows without a gradient. The error wraps ErrOption or ErrParam.
func NewSparseAdagrad[T Element](params []*SparseParam[T], o AdagradOptions) (*SparseAdagrad[T], error) {
	opt := &SparseAdagrad[T]{AdagradOptions: o}
	return made(opt, opt.begin(sparseAdagrad, &opt.AdagradOptions, &opt.Workers, params))
}

func (o *AdagradOptions) scalars(c *stepContext) kernel.Adagrad {
	return kernel.Adagrad{
		Coupled: c.coupled(o.Maximize, o.WeightDecay),
		Step:    c.narrow(-c.quotient(o.LR, 1+float64((c.t-1)*o.LRDecay))),
		Eps:     o.Eps,
	}
}
