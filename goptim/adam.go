package goptim

import (
	"errors"
	"sync"

	"github.com/goptim/goptim/goptim/internal/cpow"
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
	base        base[T]
	pass        adamPass
}

// NewAdam makes an Adam of params. The error wraps ErrOption or ErrParam.
func NewAdam[T Float](params []*Param[T], o AdamOptions) (*Adam[T], error) {
	return newAdam("Adam", params, o)
}

// NewAdamW makes an Adam whose weight decay is decoupled. The error wraps ErrOption or ErrParam.
func NewAdamW[T Float](params []*Param[T], o AdamOptions) (*Adam[T], error) {
	o.DecoupledWeightDecay = true
	return newAdam("AdamW", params, o)
}

func newAdam[T Float](name string, params []*Param[T], o AdamOptions) (*Adam[T], error) {
	if o.LR == 0 {
		o.LR = 1e-3
	}
	if o.Betas == [2]float64{} {
		o.Betas = [2]float64{0.9, 0.999}
	}
	if o.Eps == 0 {
		o.Eps = 1e-8
	}
	b, err := newBase(name, params)
	if err := errors.Join(err, o.check(name)); err != nil {
		return nil, err
	}
	return &Adam[T]{AdamOptions: o, base: b}, nil
}

// Step updates every parameter that has a gradient. On an error that wraps ErrOption or ErrParam nothing has changed.
func (a *Adam[T]) Step() error {
	if err := a.check(a.base.name); err != nil {
		return err
	}
	if err := a.base.gather(a.states()); err != nil {
		return err
	}
	a.pass.begin(&a.AdamOptions, a.base.rows, cpow.Pow)
	return a.base.run(&a.pass, a.Workers)
}

// StepTable runs one step over a table whose states are exp_avg, exp_avg_sq and, with AMSGrad, max_exp_avg_sq.
// It takes the options as they are, as torch's step does. On an error that wraps ErrParam nothing has changed.
func (o AdamOptions) StepTable(t Table) error {
	rows, err := t.rows("Adam", o.states(), true)
	if err != nil {
		return err
	}
	p := adamPasses.Get().(*adamPass)
	defer adamPasses.Put(p)
	p.begin(&o, rows, t.pow())
	return engine.Run(p, rows, t.Threads)
}

var adamPasses = sync.Pool{New: func() any { return new(adamPass) }}

func (o *AdamOptions) check(name string) error {
	return errors.Join(
		require(o.LR >= 0, name, "LR", o.LR, "at least 0"),
		require(o.Betas[0] >= 0 && o.Betas[0] < 1, name, "Betas[0]", o.Betas[0], "at least 0 and below 1"),
		require(o.Betas[1] >= 0 && o.Betas[1] < 1, name, "Betas[1]", o.Betas[1], "at least 0 and below 1"),
		require(o.Eps >= 0, name, "Eps", o.Eps, "at least 0"),
		require(o.WeightDecay >= 0, name, "WeightDecay", o.WeightDecay, "at least 0"),
	)
}

// states is how many state columns a row has.
func (o *AdamOptions) states() int {
	if o.AMSGrad {
		return 3
	}
	return 2
}

// scalars are those of step t, computed in float64 in the order torch does.
func (o *AdamOptions) scalars(t float64, pow func(x, y float64) float64) f32.Adam {
	beta1, beta2 := o.Betas[0], o.Betas[1]
	h := f32.Adam{
		Maximize: o.Maximize,
		Decay:    1,
		C1:       1 - beta1,
		Beta2:    beta2,
		C2:       1 - beta2,
		Step:     -(o.LR / (1 - pow(beta1, t))),
		BC2Sqrt:  pow(1-pow(beta2, t), 0.5),
		Eps:      o.Eps,
	}
	if o.DecoupledWeightDecay {
		h.Decay = 1 - float64(o.LR*o.WeightDecay)
	} else {
		h.WeightDecay = o.WeightDecay
	}
	return h
}

// adamPass is one step over rows, with the scalars of every step count among them.
type adamPass struct {
	rows    []engine.Row
	scalars []f32.Adam
	at      []int // the index of a row's scalars
}

func (p *adamPass) begin(o *AdamOptions, rows []engine.Row, pow func(x, y float64) float64) {
	p.rows, p.scalars, p.at = rows, p.scalars[:0], p.at[:0]
	last := -1.
	for i := range rows {
		if t := rows[i].Tick(); t != last {
			p.scalars = append(p.scalars, o.scalars(t, pow))
			last = t
		}
		p.at = append(p.at, len(p.scalars)-1)
	}
}

// Update implements engine.Pass.
func (p *adamPass) Update(row, lo, hi int) {
	r, h := &p.rows[row], &p.scalars[p.at[row]]
	if r.DType() == engine.Float32 {
		f32.UpdateAdam(h, engine.Column[float32](r.Param, lo, hi), engine.Column[float32](r.Grad, lo, hi),
			engine.Column[float32](r.State[0], lo, hi), engine.Column[float32](r.State[1], lo, hi), engine.Column[float32](r.State[2], lo, hi))
	} else {
		f64.UpdateAdam((*f64.Adam)(h), engine.Column[float64](r.Param, lo, hi), engine.Column[float64](r.Grad, lo, hi),
			engine.Column[float64](r.State[0], lo, hi), engine.Column[float64](r.State[1], lo, hi), engine.Column[float64](r.State[2], lo, hi))
	}
	kernel.Leave()
}
