package goptim

import (
	"errors"
	"fmt"
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
	base       base[T]
	pass       sgdPass
}

// NewSGD makes an SGD of params. The error wraps ErrOption or ErrParam.
func NewSGD[T Float](params []*Param[T], o SGDOptions) (*SGD[T], error) {
	if o.LR == 0 {
		o.LR = 1e-3
	}
	b, err := newBase("SGD", params)
	if err := errors.Join(err, o.check()); err != nil {
		return nil, err
	}
	return &SGD[T]{SGDOptions: o, base: b}, nil
}

// Step updates every parameter that has a gradient. On an error that wraps ErrOption or ErrParam nothing has changed.
func (s *SGD[T]) Step() error {
	if err := s.check(); err != nil {
		return err
	}
	if err := s.base.gather(s.states()); err != nil {
		return err
	}
	s.pass.begin(&s.SGDOptions, s.base.rows)
	return s.base.run(&s.pass, s.Workers)
}

// StepTable runs one step over a table whose state is momentum_buffer, if there is Momentum. It takes the options
// as they are, as torch's step does. On an error that wraps ErrParam nothing has changed.
func (o SGDOptions) StepTable(t Table) error {
	rows, err := t.rows("SGD", o.states(), false)
	if err != nil {
		return err
	}
	p := sgdPasses.Get().(*sgdPass)
	defer sgdPasses.Put(p)
	p.begin(&o, rows)
	return engine.Run(p, rows, t.Threads)
}

var sgdPasses = sync.Pool{New: func() any { return new(sgdPass) }}

func (o *SGDOptions) check() error {
	var nesterov error
	if o.Nesterov && (o.Momentum <= 0 || o.Dampening != 0) {
		nesterov = fmt.Errorf("goptim: SGD: Nesterov needs a Momentum above 0 and no Dampening: %w", ErrOption)
	}
	return errors.Join(
		require(o.LR >= 0, "SGD", "LR", o.LR, "at least 0"),
		require(o.Momentum >= 0, "SGD", "Momentum", o.Momentum, "at least 0"),
		require(o.WeightDecay >= 0, "SGD", "WeightDecay", o.WeightDecay, "at least 0"),
		nesterov,
	)
}

// states is how many state columns a row has.
func (o *SGDOptions) states() int {
	if o.Momentum != 0 {
		return 1
	}
	return 0
}

// sgdPass is one step over rows.
type sgdPass struct {
	rows    []engine.Row
	scalars f32.SGD
}

func (p *sgdPass) begin(o *SGDOptions, rows []engine.Row) {
	p.rows = rows
	p.scalars = f32.SGD{
		Maximize:    o.Maximize,
		WeightDecay: o.WeightDecay,
		Momentum:    o.Momentum,
		C:           1 - o.Dampening,
		Nesterov:    o.Nesterov,
		Step:        -o.LR,
	}
}

// Update implements engine.Pass.
func (p *sgdPass) Update(row, lo, hi int) {
	r, h := &p.rows[row], &p.scalars
	if r.DType() == engine.Float32 {
		f32.UpdateSGD(h, engine.Column[float32](r.Param, lo, hi), engine.Column[float32](r.Grad, lo, hi),
			engine.Column[float32](r.State[0], lo, hi), r.First())
	} else {
		f64.UpdateSGD((*f64.SGD)(h), engine.Column[float64](r.Param, lo, hi), engine.Column[float64](r.Grad, lo, hi),
			engine.Column[float64](r.State[0], lo, hi), r.First())
	}
	kernel.Leave()
}
