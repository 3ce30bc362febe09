package goptim

import (
	"errors"
	"sync"

	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// AdamOptions are the hyperparameters of Adam, AdamW and, with AMSGrad set, AMSGrad.
type AdamOptions struct {
	LR          float64    // learning rate, ≥ 0; New takes 0 as 1e-3
	Betas       [2]float64 // decay rates of the moments, each in [0, 1); New takes {0, 0} as {0.9, 0.999}
	Eps         float64    // added to the denominator, ≥ 0; New takes 0 as 1e-8
	WeightDecay float64    // ≥ 0; torch's default is 0 for Adam and 0.01 for AdamW
	AMSGrad     bool       // divide by the largest second moment so far
	Maximize    bool
	// DecoupledWeightDecay shrinks the parameter itself (AdamW) instead of adding the decay to the gradient (Adam).
	DecoupledWeightDecay bool
}

// Adam is the optimizer of Kingma & Ba, "Adam: A Method for Stochastic Optimization", arXiv:1412.6980, Algorithm 1,
// or AdamW, of Loshchilov & Hutter, "Decoupled Weight Decay Regularization", arXiv:1711.05101, Algorithm 2; each
// optionally with the AMSGrad of Reddi, Kale & Kumar, "On the Convergence of Adam and Beyond", ICLR 2018. Its
// bits are those of torch.optim.Adam and torch.optim.AdamW.
type Adam[T Float] struct {
	AdamOptions     // as the next Step uses them
	Workers     int // as many threads as a Step may use; 0 means GOMAXPROCS
	base        base[T, kernel.Adam]
}

// NewAdam makes an Adam of params. The error wraps ErrOption or ErrParam.
func NewAdam[T Float](params []*Param[T], o AdamOptions) (*Adam[T], error) {
	if o.LR == 0 {
		o.LR = 1e-3
	}
	if o.Betas == [2]float64{} {
		o.Betas = [2]float64{0.9, 0.999}
	}
	if o.Eps == 0 {
		o.Eps = 1e-8
	}
	b, err := newBase(&o, params)
	if err != nil {
		return nil, err
	}
	return &Adam[T]{AdamOptions: o, base: b}, nil
}

// NewAdamW makes an Adam whose weight decay is decoupled. The error wraps ErrOption or ErrParam.
func NewAdamW[T Float](params []*Param[T], o AdamOptions) (*Adam[T], error) {
	o.DecoupledWeightDecay = true
	return NewAdam(params, o)
}

// NewAMSGrad makes an Adam that divides by the largest second moment so far; torch's Adam with amsgrad=True. The error
// wraps ErrOption or ErrParam.
func NewAMSGrad[T Float](params []*Param[T], o AdamOptions) (*Adam[T], error) {
	o.AMSGrad = true
	return NewAdam(params, o)
}

// Check reports what Step would refuse now.
func (a *Adam[T]) Check() error { return a.base.checkAll(&a.AdamOptions) }

// MarshalBinary encodes options and state: see Stateful.
func (a *Adam[T]) MarshalBinary() ([]byte, error) { return marshal(a) }

// UnmarshalBinary takes options and state: see Stateful.
func (a *Adam[T]) UnmarshalBinary(data []byte) error { return unmarshal(a, data) }

func (a *Adam[T]) groups() []group { return groupOf(&a.base, &a.AdamOptions) }

// Step updates every parameter that has a gradient. On an error that wraps ErrOption or ErrParam nothing has changed.
func (a *Adam[T]) Step() error { return a.base.step(&a.AdamOptions, a.Workers) }

// StepTable runs one step over a table whose states are exp_avg, exp_avg_sq and, with AMSGrad, max_exp_avg_sq. It takes
// the options unchecked, as torch's step does. On an error that wraps ErrParam nothing has changed.
func (o AdamOptions) StepTable(t Table) error { return o.stepTables([]AdamOptions{o}, []Table{t}) }

func (AdamOptions) stepTables(o []AdamOptions, t []Table) error {
	return stepTables[kernel.Adam](&adamPasses, o, t)
}

var adamPasses sync.Pool

func (o *AdamOptions) name() string {
	if o.DecoupledWeightDecay {
		return "AdamW"
	}
	return "Adam"
}

func (o *AdamOptions) check() error {
	return errors.Join(
		require(o.LR >= 0, o.name(), "LR", o.LR, "at least 0"),
		require(o.Betas[0] >= 0 && o.Betas[0] < 1, o.name(), "Betas[0]", o.Betas[0], "at least 0 and below 1"),
		require(o.Betas[1] >= 0 && o.Betas[1] < 1, o.name(), "Betas[1]", o.Betas[1], "at least 0 and below 1"),
		require(o.Eps >= 0, o.name(), "Eps", o.Eps, "at least 0"),
		require(o.WeightDecay >= 0, o.name(), "WeightDecay", o.WeightDecay, "at least 0"),
	)
}

func (o *AdamOptions) options() []option {
	return []option{
		{"lr", (*number)(&o.LR)},
		{"betas", tupleOf(o.Betas[:])},
		{"eps", (*number)(&o.Eps)},
		{"weight_decay", (*number)(&o.WeightDecay)},
		{"amsgrad", &o.AMSGrad},
		{"maximize", &o.Maximize},
		{"decoupled_weight_decay", &o.DecoupledWeightDecay},
	}
}

func (o *AdamOptions) keys() [engine.States]stateKey {
	return [engine.States]stateKey{{name: "exp_avg"}, {name: "exp_avg_sq"}, {"max_exp_avg_sq", true}}
}

func (o *AdamOptions) layout() engine.Layout {
	l := engine.Layout{Counts: true, State: [engine.States]engine.Use{engine.Column, engine.Column}}
	if o.AMSGrad {
		l.State[2] = engine.Column
	}
	return l
}

func (o *AdamOptions) initial(int) float64 { return 0 }

func (o *AdamOptions) scalars(n *now) kernel.Adam {
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
		h.Coupled = n.coupled(o.Maximize, o.WeightDecay)
	}
	h.C1, h.C2 = n.weight(1-beta1), n.narrow(1-beta2)
	bc1, bc2 := 1-n.power(beta1, n.t, "RuntimeError"), 1-n.power(beta2, n.t, "RuntimeError")
	step := n.quotient(o.LR, bc1)
	h.BC2Sqrt = n.divisor(n.power(bc2, 0.5, "RuntimeError"))
	h.Step = n.narrow(-step)
	return h
}

func (o *AdamOptions) kernels() kernels[kernel.Adam] { return kernels[kernel.Adam]{f32.Adam, f64.Adam} }
