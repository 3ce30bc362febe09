package goptim

import (
	"errors"
	"sync"

	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// AdagradOptions are the hyperparameters of Adagrad.
type AdagradOptions struct {
	LR                      float64 // learning rate, ≥ 0; New takes 0 as 1e-2
	LRDecay                 float64 // the learning rate of step t is LR / (1 + (t-1)*LRDecay); ≥ 0
	WeightDecay             float64 // added to the gradient, times the parameter; ≥ 0
	InitialAccumulatorValue float64 // of the sum of squares; ≥ 0
	Eps                     float64 // added to the denominator, ≥ 0; New takes 0 as 1e-10
	Maximize                bool
}

// Adagrad is the optimizer of Duchi, Hazan & Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic
// Optimization", JMLR 12 (2011), with a diagonal matrix. Its bits are those of torch.optim.Adagrad.
type Adagrad[T Float] struct {
	AdagradOptions     // as the next Step uses them
	Workers        int // as many threads as a Step may use; 0 means GOMAXPROCS
	base           base[T, kernel.Adagrad]
}

// NewAdagrad makes an Adagrad of params. The error wraps ErrOption or ErrParam.
func NewAdagrad[T Float](params []*Param[T], o AdagradOptions) (*Adagrad[T], error) {
	o.setDefaults()
	b, err := newBase(&o, params)
	if err != nil {
		return nil, err
	}
	return &Adagrad[T]{AdagradOptions: o, base: b}, nil
}

// Check reports what Step would refuse now.
func (a *Adagrad[T]) Check() error { return a.base.checkAll(&a.AdagradOptions) }

// MarshalBinary encodes options and state: see Stateful.
func (a *Adagrad[T]) MarshalBinary() ([]byte, error) { return marshal(a) }

// UnmarshalBinary takes options and state: see Stateful.
func (a *Adagrad[T]) UnmarshalBinary(data []byte) error { return unmarshal(a, data) }

func (a *Adagrad[T]) groups() []group { return groupOf(&a.base, &a.AdagradOptions) }

// Step updates every parameter that has a gradient. On an error that wraps ErrOption or ErrParam nothing has changed.
func (a *Adagrad[T]) Step() error { return a.base.step(&a.AdagradOptions, a.Workers) }

// StepTable runs one step over a table whose states are sum. It takes the options
// unchecked, as torch's step does. On an error that wraps ErrParam nothing has changed.
func (o AdagradOptions) StepTable(t Table) error {
	return o.stepTables([]AdagradOptions{o}, []Table{t})
}

func (AdagradOptions) stepTables(o []AdagradOptions, t []Table) error {
	return stepTables[kernel.Adagrad](&adagradPasses, o, t)
}

// SparseAdagrad is Adagrad on the rows that have a gradient. Gradients of a row that comes more than once are added up.
// Its bits are those of torch.optim.Adagrad with sparse gradients, which are rounded otherwise than dense ones.
type SparseAdagrad[T Float] struct {
	AdagradOptions     // as the next Step uses them
	Workers        int // as many threads as a Step may use; 0 means GOMAXPROCS
	base           sparseBase[T, kernel.Adagrad]
}

// NewSparseAdagrad makes a SparseAdagrad of params. WeightDecay must be 0: it would move the rows without a gradient
// too. The error wraps ErrOption or ErrParam.
func NewSparseAdagrad[T Float](params []*SparseParam[T], o AdagradOptions) (*SparseAdagrad[T], error) {
	o.setDefaults()
	b, err := newSparseBase(sparseAdagrad{&o}, params)
	if err != nil {
		return nil, err
	}
	return &SparseAdagrad[T]{AdagradOptions: o, base: b}, nil
}

// Check reports what Step would refuse now.
func (a *SparseAdagrad[T]) Check() error { return a.base.checkAll(sparseAdagrad{&a.AdagradOptions}) }

// MarshalBinary encodes options and state: see Stateful.
func (a *SparseAdagrad[T]) MarshalBinary() ([]byte, error) { return marshal(a) }

// UnmarshalBinary takes options and state: see Stateful.
func (a *SparseAdagrad[T]) UnmarshalBinary(data []byte) error { return unmarshal(a, data) }

func (a *SparseAdagrad[T]) groups() []group {
	return []group{sparseGroup[T, kernel.Adagrad, AdagradOptions]{&a.base, &a.AdagradOptions, "Adagrad", func(o *AdagradOptions) sparseRule[kernel.Adagrad] { return sparseAdagrad{o} }}}
}

// Step updates every row that has a gradient. On an error that wraps ErrOption or ErrParam nothing has changed.
func (a *SparseAdagrad[T]) Step() error {
	return a.base.step(sparseAdagrad{&a.AdagradOptions}, &sparseAdagradPasses, a.Workers)
}

// StepSparse runs one step over a table whose state is sum. It takes the options unchecked, as torch's step does. On an
// error that wraps ErrParam nothing has changed.
func (o AdagradOptions) StepSparse(t SparseTable) error {
	return stepSparse(sparseAdagrad{&o}, &sparseAdagradPasses, t)
}

var adagradPasses, sparseAdagradPasses sync.Pool

func (o *AdagradOptions) setDefaults() {
	if o.LR == 0 {
		o.LR = 1e-2
	}
	if o.Eps == 0 {
		o.Eps = 1e-10
	}
}

func (o *AdagradOptions) name() string { return "Adagrad" }

func (o *AdagradOptions) check() error {
	return errors.Join(
		require(o.LR >= 0, "Adagrad", "LR", o.LR, "at least 0"),
		require(o.LRDecay >= 0, "Adagrad", "LRDecay", o.LRDecay, "at least 0"),
		require(o.WeightDecay >= 0, "Adagrad", "WeightDecay", o.WeightDecay, "at least 0"),
		require(o.InitialAccumulatorValue >= 0, "Adagrad", "InitialAccumulatorValue", o.InitialAccumulatorValue, "at least 0"),
		require(o.Eps >= 0, "Adagrad", "Eps", o.Eps, "at least 0"),
	)
}

func (o *AdagradOptions) options() []option {
	return []option{
		{"lr", (*number)(&o.LR)},
		{"lr_decay", (*number)(&o.LRDecay)},
		{"eps", (*number)(&o.Eps)},
		{"weight_decay", (*number)(&o.WeightDecay)},
		{"initial_accumulator_value", (*number)(&o.InitialAccumulatorValue)},
		{"maximize", &o.Maximize},
	}
}

func (o *AdagradOptions) keys() [engine.States]stateKey {
	return [engine.States]stateKey{{name: "sum"}}
}

func (o *AdagradOptions) layout() engine.Layout {
	return engine.Layout{Counts: true, State: [engine.States]engine.Use{engine.Column}}
}

func (o *AdagradOptions) initial(int) float64 {
	return o.InitialAccumulatorValue
}

func (o *AdagradOptions) scalars(n *now) kernel.Adagrad {
	return kernel.Adagrad{
		Coupled: n.coupled(o.Maximize, o.WeightDecay),
		Step:    n.narrow(-n.quotient(o.LR, 1+float64((n.t-1)*o.LRDecay))),
		Eps:     o.Eps,
	}
}

func (o *AdagradOptions) kernels() kernels[kernel.Adagrad] {
	return kernels[kernel.Adagrad]{f32.Adagrad, f64.Adagrad}
}

// sparseAdagrad is what is different with sparse gradients.
type sparseAdagrad struct{ *AdagradOptions }

func (o sparseAdagrad) name() string { return "SparseAdagrad" }

func (o sparseAdagrad) check() error {
	return errors.Join(
		o.AdagradOptions.check(),
		require(o.WeightDecay == 0, o.name(), "WeightDecay", o.WeightDecay, "0 with sparse gradients"),
	)
}

func (o sparseAdagrad) sums() bool { return true }

func (o sparseAdagrad) maximizes() bool { return o.Maximize }

func (o sparseAdagrad) rowKernels() rowKernels[kernel.Adagrad] {
	return rowKernels[kernel.Adagrad]{f32.SparseAdagrad, f64.SparseAdagrad}
}
