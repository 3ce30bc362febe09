package goptim

import (
	"math"

	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// ASGDOptions are the hyperparameters of ASGD.
type ASGDOptions struct {
	LR          float64 `torch:"lr" default:"1e-2" range:"[0,inf]"`    // learning rate
	Lambd       float64 `torch:"lambd" range:"[0,inf]"`                // decay of the parameter and, over the steps, of the learning rate; torch's default is 1e-4
	Alpha       float64 `torch:"alpha" default:"0.75" range:"[0,inf]"` // exponent of the decay of the learning rate
	T0          float64 `torch:"t0" default:"1e6" range:"[-inf,inf]"`  // the step after which averaging begins
	WeightDecay float64 `torch:"weight_decay" range:"[0,inf]"`         // added to the gradient, times the parameter
	Maximize    bool    `torch:"maximize"`
}

var asgd = elementwiseSpec(class[ASGDOptions]{
	name: "ASGD",
	states: []state{
		asgdEta: {key: "eta", scalar: true, from: "lr"}, // learning rate of the next step
		asgdMu:  {key: "mu", scalar: true, initial: 1},  // weight of the next parameter in the average
		asgdAx:  {key: "ax"},
	},
}, (*ASGDOptions).scalars, f32.ASGD, f64.ASGD, wideDefault)

// ASGD is averaged stochastic gradient descent by Polyak & Juditsky, "Acceleration of Stochastic Approximation by
// Averaging", SIAM Journal on Control and Optimization 30 (1992), with torch's schedules of the learning rate and the
// average. Results are bit-for-bit equal to torch.optim.ASGD.
type ASGD[T Element] struct {
	ASGDOptions     // used by the next Step; may be changed between steps
	Workers     int // maximum number of threads of a Step; 0 means GOMAXPROCS
	elementwise[T, ASGDOptions, kernel.ASGD]
}

// NewASGD returns a new ASGD for params. The error wraps ErrOption or ErrParam.
func NewASGD[T Element](params []*Param[T], o ASGDOptions) (*ASGD[T], error) {
	opt := &ASGD[T]{ASGDOptions: o}
	return made(opt, opt.begin(asgd, &opt.ASGDOptions, &opt.Workers, params))
}

// The states of ASGD.
const (
	asgdEta = iota
	asgdMu
	asgdAx
)

func (o *ASGDOptions) scalars(c *stepContext) kernel.ASGD {
	eta, mu := c.row.Number(asgdEta), c.row.Number(asgdMu)
	h := kernel.ASGD{
		Coupled:  c.coupled(o.Maximize, o.WeightDecay),
		Decay:    1 - float64(o.Lambd*eta),
		Step:     c.narrow(-eta),
		Mu:       mu,
		Averages: kernel.Flag(mu != 1),
	}
	c.setTensor(asgdEta, o.eta(c))
	averaged := 1.0
	if x := c.t - o.T0; x > 1 {
		averaged = x
	}
	c.setTensor(asgdMu, 1/averaged)
	return h
}

// eta returns the learning rate of the next step. If the power is complex, torch drops the imaginary part of the quotient.
func (o *ASGDOptions) eta(c *stepContext) float64 {
	base := 1 + float64(float64(o.Lambd*o.LR)*c.t)
	if !(base < 0 && o.Alpha-math.Floor(o.Alpha) > 0) || math.IsInf(base, 0) {
		return c.quotient(o.LR, c.realPower(base, o.Alpha))
	}
	length := c.realPower(-base, o.Alpha)
	sin, cos := math.Sincos(math.Pi * o.Alpha)
	re, im := length*cos, length*sin
	if re == 0 && im == 0 {
		return c.quotient(o.LR, 0)
	}
	if math.Abs(re) >= math.Abs(im) {
		return o.LR / (re + float64(im*(im/re)))
	}
	ratio := re / im
	return float64(o.LR*ratio) / (float64(re*ratio) + im)
}
