package goptim

import (
	"errors"
	"math"
	"sync"

	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// ASGDOptions are the hyperparameters of ASGD.
type ASGDOptions struct {
	LR          float64 // learning rate, ≥ 0; New takes 0 as 1e-2
	Lambd       float64 // decay of the parameter and, over the steps, of the learning rate; ≥ 0; torch's default is 1e-4
	Alpha       float64 // power of that decay of the learning rate, ≥ 0; New takes 0 as 0.75
	T0          float64 // the step after which the average begins; New takes 0 as 1e6
	WeightDecay float64 // added to the gradient, times the parameter; ≥ 0
	Maximize    bool
}

// ASGD is averaged stochastic gradient descent, of Polyak & Juditsky, "Acceleration of Stochastic Approximation by
// Averaging", SIAM Journal on Control and Optimization 30 (1992), with the schedules of torch. Its bits are those of
// torch.optim.ASGD.
type ASGD[T Float] struct {
	ASGDOptions     // as the next Step uses them
	Workers     int // as many threads as a Step may use; 0 means GOMAXPROCS
	base        base[T, kernel.ASGD]
}

// NewASGD makes an ASGD of params. The error wraps ErrOption or ErrParam.
func NewASGD[T Float](params []*Param[T], o ASGDOptions) (*ASGD[T], error) {
	if o.LR == 0 {
		o.LR = 1e-2
	}
	if o.Alpha == 0 {
		o.Alpha = 0.75
	}
	if o.T0 == 0 {
		o.T0 = 1e6
	}
	b, err := newBase(&o, params)
	if err != nil {
		return nil, err
	}
	return &ASGD[T]{ASGDOptions: o, base: b}, nil
}

// Check reports what Step would refuse now.
func (a *ASGD[T]) Check() error { return a.base.checkAll(&a.ASGDOptions) }

// MarshalBinary encodes options and state: see Stateful.
func (a *ASGD[T]) MarshalBinary() ([]byte, error) { return marshal(a) }

// UnmarshalBinary takes options and state: see Stateful.
func (a *ASGD[T]) UnmarshalBinary(data []byte) error { return unmarshal(a, data) }

func (a *ASGD[T]) groups() []group { return groupOf(&a.base, &a.ASGDOptions) }

// Step updates every parameter that has a gradient. On an error that wraps ErrOption or ErrParam nothing has changed.
func (a *ASGD[T]) Step() error { return a.base.step(&a.ASGDOptions, a.Workers) }

// StepTable runs one step over a table whose states are eta, mu and ax. It takes the options
// unchecked, as torch's step does. On an error that wraps ErrParam nothing has changed.
func (o ASGDOptions) StepTable(t Table) error { return o.stepTables([]ASGDOptions{o}, []Table{t}) }

func (ASGDOptions) stepTables(o []ASGDOptions, t []Table) error {
	return stepTables[kernel.ASGD](&asgdPasses, o, t)
}

var asgdPasses sync.Pool

func (o *ASGDOptions) name() string { return "ASGD" }

func (o *ASGDOptions) check() error {
	return errors.Join(
		require(o.LR >= 0, "ASGD", "LR", o.LR, "at least 0"),
		require(o.Lambd >= 0, "ASGD", "Lambd", o.Lambd, "at least 0"),
		require(o.Alpha >= 0, "ASGD", "Alpha", o.Alpha, "at least 0"),
		require(!math.IsNaN(o.T0), "ASGD", "T0", o.T0, "a number"),
		require(o.WeightDecay >= 0, "ASGD", "WeightDecay", o.WeightDecay, "at least 0"),
	)
}

// The states of ASGD that are one number each.
const (
	asgdEta = iota // the learning rate of the next step
	asgdMu         // the share of the next parameter in the average
)

func (o *ASGDOptions) options() []option {
	return []option{
		{"lr", (*number)(&o.LR)},
		{"lambd", (*number)(&o.Lambd)},
		{"alpha", (*number)(&o.Alpha)},
		{"t0", (*number)(&o.T0)},
		{"weight_decay", (*number)(&o.WeightDecay)},
		{"maximize", &o.Maximize},
	}
}

func (o *ASGDOptions) keys() [engine.States]stateKey {
	return [engine.States]stateKey{{name: "eta"}, {name: "mu"}, {name: "ax"}}
}

func (o *ASGDOptions) layout() engine.Layout {
	return engine.Layout{Counts: true, State: [engine.States]engine.Use{engine.Number, engine.Number, engine.Column}}
}

func (o *ASGDOptions) initial(state int) float64 {
	switch state {
	case asgdEta:
		return o.LR
	case asgdMu:
		return 1
	}
	return 0
}

func (o *ASGDOptions) scalars(n *now) kernel.ASGD {
	eta, mu := n.row.Number(asgdEta), n.row.Number(asgdMu)
	h := kernel.ASGD{
		Coupled:  n.coupled(o.Maximize, o.WeightDecay),
		Decay:    1 - float64(o.Lambd*eta),
		Step:     n.narrow(-eta),
		Mu:       mu,
		Averages: kernel.Flag(mu != 1),
	}
	n.setTensor(asgdEta, o.eta(n))
	averaged := 1.0
	if x := n.t - o.T0; x > 1 {
		averaged = x
	}
	n.setTensor(asgdMu, 1/averaged)
	return h
}

// eta is the learning rate of the next step. Where the power is complex, torch drops the imaginary part of the quotient.
func (o *ASGDOptions) eta(n *now) float64 {
	base := 1 + float64(float64(o.Lambd*o.LR)*n.t)
	if !(base < 0 && o.Alpha-math.Floor(o.Alpha) > 0) || math.IsInf(base, 0) {
		return n.quotient(o.LR, n.realPower(base, o.Alpha))
	}
	length := n.realPower(-base, o.Alpha)
	sin, cos := math.Sincos(math.Pi * o.Alpha)
	re, im := length*cos, length*sin
	if re == 0 && im == 0 {
		return n.quotient(o.LR, 0)
	}
	if math.Abs(re) >= math.Abs(im) {
		return o.LR / (re + float64(im*(im/re)))
	}
	ratio := re / im
	return float64(o.LR*ratio) / (float64(re*ratio) + im)
}

func (o *ASGDOptions) kernels() kernels[kernel.ASGD] { return kernels[kernel.ASGD]{f32.ASGD, f64.ASGD} }
