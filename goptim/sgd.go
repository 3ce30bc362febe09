package goptim

import (
	"fmt"

	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// SGDOptions are the hyperparameters of SGD.
type SGDOptions struct {
	LR          float64 `torch:"lr" default:"1e-3" range:"[0,inf]"` // learning rate
	Momentum    float64 `torch:"momentum" range:"[0,inf]"`          // decay of the momentum buffer; 0 disables it
	Dampening   float64 `torch:"dampening" range:"[-inf,inf]"`      // 1-Dampening multiplies the gradient in the buffer, except the first one
	WeightDecay float64 `torch:"weight_decay" range:"[0,inf]"`      // added to the gradient, times the parameter
	Nesterov    bool    `torch:"nesterov"`                          // requires Momentum and zero Dampening
	Maximize    bool    `torch:"maximize"`
}

var sgd = elementwiseSpec(class[SGDOptions]{
	name:      "SGD",
	uncounted: true,
	states:    []state{{key: "momentum_buffer", when: "momentum"}},
	check: func(o *SGDOptions) error {
		if o.Nesterov && (o.Momentum <= 0 || o.Dampening != 0) {
			return fmt.Errorf("goptim: SGD: Nesterov needs a Momentum above 0 and no Dampening: %w", ErrOption)
		}
		return nil
	},
}, (*SGDOptions).scalars, f32.SGD, f64.SGD)

// SGD is stochastic gradient descent, with the momentum of Sutskever, Martens, Dahl & Hinton, "On the importance of
// initialization and momentum in deep learning", ICML 2013, in torch's form. The learning rate multiplies the buffer,
// and the first buffer is the gradient. Results are bit-for-bit equal to torch.optim.SGD.
type SGD[T Element] struct {
	SGDOptions     // used by the next Step; may be changed between steps
	Workers    int // maximum number of threads of a Step; 0 means GOMAXPROCS
	elementwise[T, SGDOptions, kernel.SGD]
}

// NewSGD returns a new SGD for params. The error wraps ErrOption or ErrParam.
func NewSGD[T Element](params []*Param[T], o SGDOptions) (*SGD[T], error) {
	opt := &SGD[T]{SGDOptions: o}
	return made(opt, opt.begin(sgd, &opt.SGDOptions, &opt.Workers, params))
}

var sparseSGD = sparseSpecOf(&sgd.class, sparseRule{name: "SparseSGD", zeros: []string{"momentum", "weight_decay"}},
	(*SGDOptions).scalars, f32.SparseSGD, f64.SparseSGD)

// SparseSGD is SGD without momentum for the rows that have a gradient. The gradients of a repeated row are applied one
// after another. Results are bit-for-bit equal to torch.optim.SGD with sparse gradients.
type SparseSGD[T Element] struct {
	SGDOptions     // used by the next Step; may be changed between steps
	Workers    int // maximum number of threads of a Step; 0 means GOMAXPROCS
	sparse[T, SGDOptions, kernel.SGD]
}

// NewSparseSGD returns a new SparseSGD for params. Momentum and WeightDecay must be 0, because they would
// also update the rows without a gradient. The error wraps ErrOption or ErrParam.
func NewSparseSGD[T Element](params []*SparseParam[T], o SGDOptions) (*SparseSGD[T], error) {
	opt := &SparseSGD[T]{SGDOptions: o}
	return made(opt, opt.begin(sparseSGD, &opt.SGDOptions, &opt.Workers, params))
}

func (o *SGDOptions) scalars(c *stepContext) kernel.SGD {
	coupled := c.coupled(o.Maximize, o.WeightDecay)
	if o.Momentum != 0 && !c.row.First() {
		c.narrow(1 - o.Dampening)
	}
	if o.Momentum != 0 && o.Nesterov {
		c.narrow(o.Momentum)
	}
	return kernel.SGD{
		Coupled:  coupled,
		First:    kernel.Flag(c.row.First()),
		Momentum: o.Momentum,
		C:        1 - o.Dampening,
		Nesterov: kernel.Flag(o.Nesterov),
		Step:     c.narrow(-o.LR),
	}
}
