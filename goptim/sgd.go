package goptim

import (
	"errors"
	"fmt"
	"math"
	"sync"

	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// SGDOptions are the hyperparameters of SGD.
type SGDOptions struct {
	LR          float64 // learning rate, ≥ 0; New takes 0 as 1e-3
	Momentum    float64 // decay of the momentum buffer, ≥ 0; 0 keeps no buffer
	Dampening   float64 // 1-Dampening is the gradient's share in the buffer, but for the first gradient
	WeightDecay float64 // added to the gradient, times the parameter; ≥ 0
	Nesterov    bool    // needs Momentum and no Dampening
	Maximize    bool
}

// SGD is stochastic gradient descent, with the momentum of Sutskever, Martens, Dahl & Hinton, "On the importance of
// initialization and momentum in deep learning", ICML 2013, in torch's form: the learning rate multiplies the
// buffer, and the first buffer is the gradient. Its bits are those of torch.optim.SGD.
type SGD[T Float] struct {
	SGDOptions     // as the next Step uses them
	Workers    int // as many threads as a Step may use; 0 means GOMAXPROCS
	base       base[T, kernel.SGD]
}

// NewSGD makes an SGD of params. The error wraps ErrOption or ErrParam.
func NewSGD[T Float](params []*Param[T], o SGDOptions) (*SGD[T], error) {
	if o.LR == 0 {
		o.LR = 1e-3
	}
	b, err := newBase(&o, params)
	if err != nil {
		return nil, err
	}
	return &SGD[T]{SGDOptions: o, base: b}, nil
}

// Check reports what Step would refuse now.
func (s *SGD[T]) Check() error { return s.base.checkAll(&s.SGDOptions) }

// MarshalBinary encodes options and state: see Stateful.
func (s *SGD[T]) MarshalBinary() ([]byte, error) { return marshal(s) }

// UnmarshalBinary takes options and state: see Stateful.
func (s *SGD[T]) UnmarshalBinary(data []byte) error { return unmarshal(s, data) }

func (s *SGD[T]) groups() []group { return groupOf(&s.base, &s.SGDOptions) }

// Step updates every parameter that has a gradient. On an error that wraps ErrOption or ErrParam nothing has changed.
func (s *SGD[T]) Step() error { return s.base.step(&s.SGDOptions, s.Workers) }

// StepTable runs one step over a table whose state is momentum_buffer, if there is Momentum. It takes the options
// unchecked, as torch's step does. On an error that wraps ErrParam nothing has changed.
func (o SGDOptions) StepTable(t Table) error { return o.stepTables([]SGDOptions{o}, []Table{t}) }

func (SGDOptions) stepTables(o []SGDOptions, t []Table) error {
	return stepTables[kernel.SGD](&sgdPasses, o, t)
}

// SparseSGD is SGD without momentum on the rows that have a gradient. Gradients of a row that comes more than once are
// steps one after the other. Its bits are those of torch.optim.SGD with sparse gradients.
type SparseSGD[T Float] struct {
	SGDOptions     // as the next Step uses them
	Workers    int // as many threads as a Step may use; 0 means GOMAXPROCS
	base       sparseBase[T, kernel.SGD]
}

// NewSparseSGD makes a SparseSGD of params. Momentum and WeightDecay must be 0: they would move the rows without a
// gradient too. The error wraps ErrOption or ErrParam.
func NewSparseSGD[T Float](params []*SparseParam[T], o SGDOptions) (*SparseSGD[T], error) {
	if o.LR == 0 {
		o.LR = 1e-3
	}
	b, err := newSparseBase(sparseSGD{&o}, params)
	if err != nil {
		return nil, err
	}
	return &SparseSGD[T]{SGDOptions: o, base: b}, nil
}

// Check reports what Step would refuse now.
func (s *SparseSGD[T]) Check() error { return s.base.checkAll(sparseSGD{&s.SGDOptions}) }

// MarshalBinary encodes options and state: see Stateful.
func (s *SparseSGD[T]) MarshalBinary() ([]byte, error) { return marshal(s) }

// UnmarshalBinary takes options and state: see Stateful.
func (s *SparseSGD[T]) UnmarshalBinary(data []byte) error { return unmarshal(s, data) }

func (s *SparseSGD[T]) groups() []group {
	return []group{sparseGroup[T, kernel.SGD, SGDOptions]{&s.base, &s.SGDOptions, "SGD", func(o *SGDOptions) sparseRule[kernel.SGD] { return sparseSGD{o} }}}
}

// Step updates every row that has a gradient. On an error that wraps ErrOption or ErrParam nothing has changed.
func (s *SparseSGD[T]) Step() error {
	return s.base.step(sparseSGD{&s.SGDOptions}, &sparseSGDPasses, s.Workers)
}

// StepSparse runs one step over a table without states, for Momentum and WeightDecay of 0. It takes the options
// unchecked, as torch's step does. On an error that wraps ErrParam nothing has changed.
func (o SGDOptions) StepSparse(t SparseTable) error {
	return stepSparse(sparseSGD{&o}, &sparseSGDPasses, t)
}

var sgdPasses, sparseSGDPasses sync.Pool

func (o *SGDOptions) name() string { return "SGD" }

func (o *SGDOptions) check() error {
	var nesterov error
	if o.Nesterov && (o.Momentum <= 0 || o.Dampening != 0) {
		nesterov = fmt.Errorf("goptim: SGD: Nesterov needs a Momentum above 0 and no Dampening: %w", ErrOption)
	}
	return errors.Join(
		require(o.LR >= 0, "SGD", "LR", o.LR, "at least 0"),
		require(o.Momentum >= 0, "SGD", "Momentum", o.Momentum, "at least 0"),
		require(!math.IsNaN(o.Dampening), "SGD", "Dampening", o.Dampening, "a number"),
		require(o.WeightDecay >= 0, "SGD", "WeightDecay", o.WeightDecay, "at least 0"),
		nesterov,
	)
}

func (o *SGDOptions) options() []option {
	return []option{
		{"lr", (*number)(&o.LR)},
		{"momentum", (*number)(&o.Momentum)},
		{"dampening", (*number)(&o.Dampening)},
		{"weight_decay", (*number)(&o.WeightDecay)},
		{"nesterov", &o.Nesterov},
		{"maximize", &o.Maximize},
	}
}

func (o *SGDOptions) keys() [engine.States]stateKey {
	return [engine.States]stateKey{{"momentum_buffer", true}}
}

func (o *SGDOptions) layout() (l engine.Layout) {
	if o.Momentum != 0 {
		l.State[0] = engine.Column
	}
	return l
}

func (o *SGDOptions) initial(int) float64 { return 0 }

func (o *SGDOptions) scalars(n *now) kernel.SGD {
	coupled := n.coupled(o.Maximize, o.WeightDecay)
	if o.Momentum != 0 && !n.row.First() {
		n.narrow(1 - o.Dampening)
	}
	if o.Momentum != 0 && o.Nesterov {
		n.narrow(o.Momentum)
	}
	return kernel.SGD{
		Coupled:  coupled,
		First:    kernel.Flag(n.row.First()),
		Momentum: o.Momentum,
		C:        1 - o.Dampening,
		Nesterov: kernel.Flag(o.Nesterov),
		Step:     n.narrow(-o.LR),
	}
}

func (o *SGDOptions) kernels() kernels[kernel.SGD] { return kernels[kernel.SGD]{f32.SGD, f64.SGD} }

// sparseSGD is what is different with sparse gradients.
type sparseSGD struct{ *SGDOptions }

func (o sparseSGD) name() string { return "SparseSGD" }

func (o sparseSGD) check() error {
	return errors.Join(
		o.SGDOptions.check(),
		require(o.Momentum == 0, o.name(), "Momentum", o.Momentum, "0 with sparse gradients"),
		require(o.WeightDecay == 0, o.name(), "WeightDecay", o.WeightDecay, "0 with sparse gradients"),
	)
}

func (o sparseSGD) sums() bool { return false }

func (o sparseSGD) maximizes() bool { return o.Maximize }

func (o sparseSGD) rowKernels() rowKernels[kernel.SGD] {
	return rowKernels[kernel.SGD]{f32.SparseSGD, f64.SparseSGD}
}
