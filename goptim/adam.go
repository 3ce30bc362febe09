package goptim

import (
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// AdamOptions are the hyperparameters of Adam, AdamW and, with AMSGrad set, AMSGrad.
type AdamOptions struct {
	LR          float64    `torch:"lr" default:"1e-3" range:"[0,inf]"`       // learning rate
	Betas       [2]float64 `torch:"betas" default:"0.9 0.999" range:"[0,1)"` // decay rates of the moments
	Eps         float64    `torch:"eps" default:"1e-8" range:"[0,inf]"`      // added to the denominator
	WeightDecay float64    `torch:"weight_decay" range:"[0,inf]"`            // torch's default is 0 for Adam and 0.01 for AdamW
	AMSGrad     bool       `torch:"amsgrad"`                                 // divide by the largest second moment so far
	Maximize    bool       `torch:"maximize"`
	// DecoupledWeightDecay shrinks the parameter itself (AdamW) instead of adding the decay to the gradient (Adam).
	DecoupledWeightDecay bool `torch:"decoupled_weight_decay"`
}

var adam = elementwiseSpec(class[AdamOptions]{
	name:    "Adam",
	variant: "AdamW", flag: "decoupled_weight_decay",
	states: []state{{key: "exp_avg"}, {key: "exp_avg_sq"}, {key: "max_exp_avg_sq", when: "amsgrad"}},
}, (*AdamOptions).scalars, f32.Adam, f64.Adam)

// Adam is the optimizer of Kingma & Ba, "Adam: A Method for Stochastic Optimization", arXiv:1412.6980, Algorithm 1, or
// AdamW, of Loshchilov & Hutter, "Decoupled Weight Decay Regularization", arXiv:1711.05101, Algorithm 2; each
// optionally with the AMSGrad of Reddi, Kale & Kumar, "On the Convergence of Adam and Beyond", ICLR 2018. Results are
// bit-for-bit equal to torch.optim.Adam and torch.optim.AdamW.
type Adam[T Element] struct {
	AdamOptions     // used by the next Step; may be changed between steps
	Workers     int // maximum number of threads of a Step; 0 means GOMAXPROCS
	elementwise[T, AdamOptions, kernel.Adam]
}

// NewAdam returns a new Adam for params. The error wraps ErrOption or ErrParam.
func NewAdam[T Element](params []*Param[T], o AdamOptions) (*Adam[T], error) {
	opt := &Adam[T]{AdamOptions: o}
	return made(opt, opt.begin(adam, &opt.AdamOptions, &opt.Workers, params))
}

// NewAdamW returns a new Adam with decoupled weight decay. The error wraps ErrOption or ErrParam.
func NewAdamW[T Element](params []*Param[T], o AdamOptions) (*Adam[T], error) {
	o.DecoupledWeightDecay = true
	return NewAdam(params, o)
}

// NewAMSGrad returns a new Adam that divides by the largest second moment so far, as torch's Adam with amsgrad=True. The error
// wraps ErrOption or ErrParam.
func NewAMSGrad[T Element](params []*Param[T], o AdamOptions) (*Adam[T], error) {
	o.AMSGrad = true
	return NewAdam(params, o)
}

func (o *AdamOptions) scalars(c *stepContext) kernel.Adam {
	beta1, beta2 := o.Betas[0], o.Betas[1]
	h := kernel.Adam{
		Coupled: kernel.CoupledOf(o.Maximize, 0),
		Decay:   1,
		Beta2:   beta2,
		Eps:     o.Eps,
	}
	if o.DecoupledWeightDecay {
		h.Decay = decoupled(o.LR, o.WeightDecay)
	} else {
		h.Coupled = c.coupled(o.Maximize, o.WeightDecay)
	}
	h.C1, h.C2 = c.weight(1-beta1), c.narrow(1-beta2)
	bc1, bc2 := 1-c.power(beta1, c.t, "RuntimeError"), 1-c.power(beta2, c.t, "RuntimeError")
	step := c.quotient(o.LR, bc1)
	h.BC2Sqrt = c.divisor(c.power(bc2, 0.5, "RuntimeError"))
	h.Step = c.narrow(-step)
	return h
}
