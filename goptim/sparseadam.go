package goptim

import (
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// SparseAdamOptions are the hyperparameters of SparseAdam.
type SparseAdamOptions struct {
	LR       float64    `torch:"lr" default:"1e-3" range:"(0,inf]"`       // learning rate
	Betas    [2]float64 `torch:"betas" default:"0.9 0.999" range:"[0,1)"` // decay rates of the moments
	Eps      float64    `torch:"eps" default:"1e-8" range:"(0,inf]"`      // added to the denominator
	Maximize bool       `torch:"maximize,absent"`
}

var sparseAdamClass = class[SparseAdamOptions]{
	name:    "SparseAdam",
	integer: true,
	states:  []state{{key: "exp_avg"}, {key: "exp_avg_sq"}},
}.described()

var sparseAdam = sparseSpecOf(&sparseAdamClass, sparseRule{name: "SparseAdam", sums: true},
	(*SparseAdamOptions).scalars, f32.SparseAdam, f64.SparseAdam)

// SparseAdam is Adam (Kingma & Ba, arXiv:1412.6980, Algorithm 1) that updates only the rows that have a gradient, and
// their moments. The gradients of a repeated row are summed, in float32 if elements have 16 bits. Results are bit-for-bit equal to torch.optim.SparseAdam.
type SparseAdam[T Element] struct {
	SparseAdamOptions     // used by the next Step; may be changed between steps
	Workers           int // maximum number of threads of a Step; 0 means GOMAXPROCS
	sparse[T, SparseAdamOptions, kernel.SparseAdam]
}

// NewSparseAdam returns a new SparseAdam for params. The error wraps ErrOption or ErrParam.
func NewSparseAdam[T Element](params []*SparseParam[T], o SparseAdamOptions) (*SparseAdam[T], error) {
	opt := &SparseAdam[T]{SparseAdamOptions: o}
	return made(opt, opt.begin(sparseAdam, &opt.SparseAdamOptions, &opt.Workers, params))
}

func (o *SparseAdamOptions) scalars(c *stepContext) kernel.SparseAdam {
	beta1, beta2 := o.Betas[0], o.Betas[1]
	bc1, bc2 := 1-c.power(beta1, c.t, "RuntimeError"), 1-c.power(beta2, c.t, "RuntimeError")
	return kernel.SparseAdam{
		Sign: kernel.Sign(o.Maximize),
		C1:   1 - beta1,
		C2:   1 - beta2,
		Eps:  o.Eps,
		Step: -c.quotient(o.LR*c.sqrt(bc2), bc1),
	}
}
