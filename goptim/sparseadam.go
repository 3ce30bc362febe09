package goptim

import (
	"errors"
	"sync"

	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// SparseAdamOptions are the hyperparameters of SparseAdam.
type SparseAdamOptions struct {
	LR       float64    // learning rate, > 0; New takes 0 as 1e-3
	Betas    [2]float64 // decay rates of the moments, each in [0, 1); New takes {0, 0} as {0.9, 0.999}
	Eps      float64    // added to the denominator, > 0; New takes 0 as 1e-8
	Maximize bool
}

// SparseAdam is Adam (Kingma & Ba, arXiv:1412.6980, Algorithm 1) that moves only the rows that have a gradient, and the
// moments of these. Gradients of a row that comes more than once are added up. Its bits are those of
// torch.optim.SparseAdam.
type SparseAdam[T Float] struct {
	SparseAdamOptions     // as the next Step uses them
	Workers           int // as many threads as a Step may use; 0 means GOMAXPROCS
	base              sparseBase[T, kernel.SparseAdam]
}

// NewSparseAdam makes a SparseAdam of params. The error wraps ErrOption or ErrParam.
func NewSparseAdam[T Float](params []*SparseParam[T], o SparseAdamOptions) (*SparseAdam[T], error) {
	if o.LR == 0 {
		o.LR = 1e-3
	}
	if o.Betas == [2]float64{} {
		o.Betas = [2]float64{0.9, 0.999}
	}
	if o.Eps == 0 {
		o.Eps = 1e-8
	}
	b, err := newSparseBase(&o, params)
	if err != nil {
		return nil, err
	}
	return &SparseAdam[T]{SparseAdamOptions: o, base: b}, nil
}

// Check reports what Step would refuse now.
func (s *SparseAdam[T]) Check() error { return s.base.checkAll(&s.SparseAdamOptions) }

// MarshalBinary encodes options and state: see Stateful.
func (s *SparseAdam[T]) MarshalBinary() ([]byte, error) { return marshal(s) }

// UnmarshalBinary takes options and state: see Stateful.
func (s *SparseAdam[T]) UnmarshalBinary(data []byte) error { return unmarshal(s, data) }

func (s *SparseAdam[T]) groups() []group {
	return []group{sparseGroup[T, kernel.SparseAdam, SparseAdamOptions]{&s.base, &s.SparseAdamOptions, "SparseAdam", func(o *SparseAdamOptions) sparseRule[kernel.SparseAdam] { return o }}}
}

// Step updates every row that has a gradient. On an error that wraps ErrOption or ErrParam nothing has changed.
func (s *SparseAdam[T]) Step() error {
	return s.base.step(&s.SparseAdamOptions, &sparseAdamPasses, s.Workers)
}

// StepSparse runs one step over a table whose states are exp_avg and exp_avg_sq. It takes the options unchecked, as
// torch's step does. On an error that wraps ErrParam nothing has changed.
func (o SparseAdamOptions) StepSparse(t SparseTable) error {
	return stepSparse(&o, &sparseAdamPasses, t)
}

var sparseAdamPasses sync.Pool

func (o *SparseAdamOptions) name() string { return "SparseAdam" }

func (o *SparseAdamOptions) check() error {
	return errors.Join(
		require(o.LR > 0, "SparseAdam", "LR", o.LR, "above 0"),
		require(o.Betas[0] >= 0 && o.Betas[0] < 1, "SparseAdam", "Betas[0]", o.Betas[0], "at least 0 and below 1"),
		require(o.Betas[1] >= 0 && o.Betas[1] < 1, "SparseAdam", "Betas[1]", o.Betas[1], "at least 0 and below 1"),
		require(o.Eps > 0, "SparseAdam", "Eps", o.Eps, "above 0"),
	)
}

func (o *SparseAdamOptions) options() []option {
	return []option{
		{"lr", (*number)(&o.LR)},
		{"betas", tupleOf(o.Betas[:])},
		{"eps", (*number)(&o.Eps)},
		{"maximize", &o.Maximize},
	}
}

func (o *SparseAdamOptions) keys() [engine.States]stateKey {
	return [engine.States]stateKey{{name: "exp_avg"}, {name: "exp_avg_sq"}}
}

func (o *SparseAdamOptions) layout() engine.Layout {
	return engine.Layout{Counts: true, State: [engine.States]engine.Use{engine.Column, engine.Column}}
}

func (o *SparseAdamOptions) initial(int) float64 { return 0 }

func (o *SparseAdamOptions) sums() bool { return true }

func (o *SparseAdamOptions) maximizes() bool { return o.Maximize }

func (o *SparseAdamOptions) scalars(n *now) kernel.SparseAdam {
	beta1, beta2 := o.Betas[0], o.Betas[1]
	bc1, bc2 := 1-n.power(beta1, n.t, "RuntimeError"), 1-n.power(beta2, n.t, "RuntimeError")
	return kernel.SparseAdam{
		Sign: kernel.Sign(o.Maximize),
		C1:   1 - beta1,
		C2:   1 - beta2,
		Eps:  o.Eps,
		Step: -n.quotient(o.LR*n.sqrt(bc2), bc1),
	}
}

func (o *SparseAdamOptions) rowKernels() rowKernels[kernel.SparseAdam] {
	return rowKernels[kernel.SparseAdam]{f32.SparseAdam, f64.SparseAdam}
}
