package goptim

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"unsafe"

	"github.com/goptim/goptim/goptim/internal/cpow"
	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// ScheduleFreeProgress is what the steps, Train and Eval of a Schedule-Free optimizer change besides its parameters and states.
// New functions get it as zero.
type ScheduleFreeProgress struct {
	K           int     `torch:"k"`                  // number of steps
	TrainMode   bool    `torch:"train_mode,initial"` // values are those to train with: set by Train and Eval
	WeightSum   float64 `torch:"weight_sum"`         // of the averaged steps
	LRMax       float64 `torch:"lr_max"`             // the largest learning rate so far
	ScheduledLR float64 `torch:"scheduled_lr,initial"`
}

// AdamWScheduleFreeOptions are the hyperparameters of AdamWScheduleFree.
type AdamWScheduleFreeOptions struct {
	LR            float64    `torch:"lr" default:"0.0025" range:"[0,inf]"`     // learning rate
	Betas         [2]float64 `torch:"betas" default:"0.9 0.999" range:"[0,1)"` // interpolation of the values to train with, decay rate of the second moment
	Eps           float64    `torch:"eps" default:"1e-8" range:"[0,inf]"`      // added to the denominator
	WeightDecay   float64    `torch:"weight_decay" range:"[0,inf]"`
	WarmupSteps   float64    `torch:"warmup_steps" range:"[0,inf]"`                   // steps in which the learning rate grows linearly
	R             float64    `torch:"r" range:"[-inf,inf]"`                           // a step's weight in the average grows as the R-th power of its number
	WeightLRPower float64    `torch:"weight_lr_power" default:"2" range:"[-inf,inf]"` // and as this power of the largest learning rate so far
	ScheduleFreeProgress
}

// SGDScheduleFreeOptions are the hyperparameters of SGDScheduleFree.
type SGDScheduleFreeOptions struct {
	LR            float64 `torch:"lr" default:"1" range:"[0,inf]"`       // learning rate
	Momentum      float64 `torch:"momentum" default:"0.9" range:"(0,1)"` // interpolation of the values to train with
	WeightDecay   float64 `torch:"weight_decay" range:"[0,inf]"`
	WarmupSteps   float64 `torch:"warmup_steps" range:"[0,inf]"`                   // as in AdamWScheduleFreeOptions
	R             float64 `torch:"r" range:"[-inf,inf]"`                           // likewise
	WeightLRPower float64 `torch:"weight_lr_power" default:"2" range:"[-inf,inf]"` // likewise
	ScheduleFreeProgress
}

// RAdamScheduleFreeOptions are the hyperparameters of RAdamScheduleFree.
type RAdamScheduleFreeOptions struct {
	LR             float64    `torch:"lr" default:"0.0025" range:"[0,inf]"`     // learning rate
	Betas          [2]float64 `torch:"betas" default:"0.9 0.999" range:"[0,1)"` // as in AdamWScheduleFreeOptions
	Eps            float64    `torch:"eps" default:"1e-8" range:"[0,inf]"`      // added to the denominator
	WeightDecay    float64    `torch:"weight_decay" range:"[0,inf]"`
	R              float64    `torch:"r" range:"[-inf,inf]"`                           // as in AdamWScheduleFreeOptions
	WeightLRPower  float64    `torch:"weight_lr_power" default:"2" range:"[-inf,inf]"` // likewise
	SilentSGDPhase bool       `torch:"silent_sgd_phase"`                               // do not move values in the first steps, as is the default in Python
	ScheduleFreeProgress
}

// scheduleFreeResults are the options that a step changes.
var scheduleFreeResults = []string{"k", "weight_sum", "lr_max", "scheduled_lr"}

var (
	adamwScheduleFree = elementwiseSpec(class[AdamWScheduleFreeOptions]{
		name: "AdamWScheduleFree", uncounted: true, results: scheduleFreeResults,
		states:  []state{{key: "z", copied: true}, {key: "exp_avg_sq"}},
		ready:   func(o *AdamWScheduleFreeOptions) error { return o.ready("AdamWScheduleFree") },
		advance: func(o *AdamWScheduleFreeOptions, c *stepContext) { o.advance(o.next(c)) },
	}, (*AdamWScheduleFreeOptions).scalars, f32.ScheduleFree, f64.ScheduleFree)

	sgdScheduleFree = elementwiseSpec(class[SGDScheduleFreeOptions]{
		name: "SGDScheduleFree", uncounted: true, results: scheduleFreeResults,
		states:  []state{{key: "z", copied: true}},
		ready:   func(o *SGDScheduleFreeOptions) error { return o.ready("SGDScheduleFree") },
		advance: func(o *SGDScheduleFreeOptions, c *stepContext) { o.advance(o.next(c)) },
	}, (*SGDScheduleFreeOptions).scalars, f32.SGDScheduleFree, f64.SGDScheduleFree)

	radamScheduleFree = elementwiseSpec(class[RAdamScheduleFreeOptions]{
		name: "RAdamScheduleFree", uncounted: true, results: scheduleFreeResults,
		states:  []state{{key: "z", copied: true}, {key: "exp_avg_sq"}},
		ready:   func(o *RAdamScheduleFreeOptions) error { return o.ready("RAdamScheduleFree") },
		advance: func(o *RAdamScheduleFreeOptions, c *stepContext) { o.advance(o.next(c)) },
	}, (*RAdamScheduleFreeOptions).scalars, f32.ScheduleFree, f64.ScheduleFree)

	// scheduleFreeSwitch is the step of Train and Eval: it interpolates a parameter between its value and z, and stores it as other
	// steps do. It does not read the gradient.
	scheduleFreeSwitch = elementwiseSpec(class[lerpOptions]{
		name: "ScheduleFreeSwitch", uncounted: true, states: []state{{key: "z"}},
	}, func(o *lerpOptions, c *stepContext) kernel.Average {
		return kernel.Average{Weight: c.weight(o.Weight)}
	}, lerpState(f32.AverageLerp), lerpState(f64.AverageLerp))
)

// lerpState returns the kernel that averages the parameter with its first state.
func lerpState[T Float](f kernel.Func[kernel.Average, T]) kernel.Func[kernel.Average, T] {
	return func(h *kernel.Average, p, _ []T, s [4][]T) { f(h, p, s[0], [4][]T{}) }
}

// AdamWScheduleFree is the optimizer of Defazio, Yang, Mehta, Mishchenko, Khaled & Cutkosky, "The Road Less Scheduled",
// arXiv:2405.15682, Algorithm 1, which needs no learning-rate schedule. Results are bit-for-bit equal to AdamWScheduleFree of the
// Python package schedulefree. Call Train before the first Step and after Eval, and Eval before the values are evaluated or saved.
type AdamWScheduleFree[T Element] struct {
	AdamWScheduleFreeOptions     // used by the next Step; may be changed between steps
	Workers                  int // maximum number of threads of a Step; 0 means GOMAXPROCS
	elementwise[T, AdamWScheduleFreeOptions, kernel.ScheduleFree]
}

// SGDScheduleFree is Schedule-Free SGD of Defazio et al., arXiv:2405.15682, equations 2 to 4. Results are bit-for-bit equal to
// SGDScheduleFree of the Python package schedulefree. Train and Eval are used as with AdamWScheduleFree.
type SGDScheduleFree[T Element] struct {
	SGDScheduleFreeOptions     // used by the next Step; may be changed between steps
	Workers                int // maximum number of threads of a Step; 0 means GOMAXPROCS
	elementwise[T, SGDScheduleFreeOptions, kernel.SGDScheduleFree]
}

// RAdamScheduleFree is AdamWScheduleFree with the rectification of RAdam instead of a warm-up. Results are bit-for-bit equal to
// RAdamScheduleFree of the Python package schedulefree. Train and Eval are used as with AdamWScheduleFree.
type RAdamScheduleFree[T Element] struct {
	RAdamScheduleFreeOptions     // used by the next Step; may be changed between steps
	Workers                  int // maximum number of threads of a Step; 0 means GOMAXPROCS
	elementwise[T, RAdamScheduleFreeOptions, kernel.ScheduleFree]
}

// NewAdamWScheduleFree returns a new AdamWScheduleFree for params. The error wraps ErrOption or ErrParam.
func NewAdamWScheduleFree[T Element](params []*Param[T], o AdamWScheduleFreeOptions) (*AdamWScheduleFree[T], error) {
	opt := &AdamWScheduleFree[T]{AdamWScheduleFreeOptions: o}
	return made(opt, opt.begin(adamwScheduleFree, &opt.AdamWScheduleFreeOptions, &opt.Workers, params))
}

// NewSGDScheduleFree returns a new SGDScheduleFree for params. The error wraps ErrOption or ErrParam.
func NewSGDScheduleFree[T Element](params []*Param[T], o SGDScheduleFreeOptions) (*SGDScheduleFree[T], error) {
	opt := &SGDScheduleFree[T]{SGDScheduleFreeOptions: o}
	return made(opt, opt.begin(sgdScheduleFree, &opt.SGDScheduleFreeOptions, &opt.Workers, params))
}

// NewRAdamScheduleFree returns a new RAdamScheduleFree for params. The error wraps ErrOption or ErrParam.
func NewRAdamScheduleFree[T Element](params []*Param[T], o RAdamScheduleFreeOptions) (*RAdamScheduleFree[T], error) {
	opt := &RAdamScheduleFree[T]{RAdamScheduleFreeOptions: o}
	return made(opt, opt.begin(radamScheduleFree, &opt.RAdamScheduleFreeOptions, &opt.Workers, params))
}

// Train changes the values to those to train with. It has no effect in train mode. It stores them as Step does, and with RoundStochastic it
// counts as a step. If it returns an error, nothing has changed.
func (a *AdamWScheduleFree[T]) Train() error {
	return switchMode(&a.elementwise, &a.TrainMode, true, a.Betas[0])
}

// Eval changes the values to the averages, which are evaluated and saved. It has no effect unless in train mode. It stores them as Train
// does. If it returns an error, nothing has changed.
func (a *AdamWScheduleFree[T]) Eval() error {
	return switchMode(&a.elementwise, &a.TrainMode, false, a.Betas[0])
}

// Train is that of AdamWScheduleFree.
func (s *SGDScheduleFree[T]) Train() error {
	return switchMode(&s.elementwise, &s.TrainMode, true, s.Momentum)
}

// Eval is that of AdamWScheduleFree.
func (s *SGDScheduleFree[T]) Eval() error {
	return switchMode(&s.elementwise, &s.TrainMode, false, s.Momentum)
}

// Train is that of AdamWScheduleFree.
func (r *RAdamScheduleFree[T]) Train() error {
	return switchMode(&r.elementwise, &r.TrainMode, true, r.Betas[0])
}

// Eval is that of AdamWScheduleFree.
func (r *RAdamScheduleFree[T]) Eval() error {
	return switchMode(&r.elementwise, &r.TrainMode, false, r.Betas[0])
}

// A scheduleFreeStep has the numbers of one step that depend on the steps before it.
type scheduleFreeStep struct {
	lr, lrMax, weightSum float64
	ck                   float64 // weight of z in the average
	rectified            bool    // RAdam divides by the root of the second moment
}

func (o *AdamWScheduleFreeOptions) next(c *stepContext) scheduleFreeStep {
	return o.ScheduleFreeProgress.next(c, o.warmedUp(o.LR, o.WarmupSteps), o.R, o.WeightLRPower)
}

func (o *SGDScheduleFreeOptions) next(c *stepContext) scheduleFreeStep {
	return o.ScheduleFreeProgress.next(c, o.warmedUp(o.LR, o.WarmupSteps), o.R, o.WeightLRPower)
}

func (o *RAdamScheduleFreeOptions) next(c *stepContext) scheduleFreeStep {
	beta2, t := o.Betas[1], float64(o.K+1)
	power := c.power(beta2, t, "TypeError")
	rhoInf := c.quotient(2, 1-beta2) - 1
	rho := rhoInf - c.quotient(2*t*power, 1-power)
	rect := 1 - kernel.Flag(o.SilentSGDPhase)
	if rho > 4 {
		rect = c.power(c.quotient((rho-4)*(rho-2)*rhoInf, (rhoInf-4)*(rhoInf-2)*rho), 0.5, "TypeError")
	}
	s := o.ScheduleFreeProgress.next(c, o.LR*rect, o.R, o.WeightLRPower)
	s.rectified = rho > 4
	return s
}

// warmedUp returns the learning rate of the next step.
func (p *ScheduleFreeProgress) warmedUp(lr, warmupSteps float64) float64 {
	if k := float64(p.K); k < warmupSteps {
		return lr * ((k + 1) / warmupSteps)
	}
	return lr
}

func (p *ScheduleFreeProgress) next(c *stepContext, lr, r, weightLRPower float64) scheduleFreeStep {
	s := scheduleFreeStep{lr: lr, lrMax: lr}
	if p.LRMax > lr {
		s.lrMax = p.LRMax
	}
	weight := float64(c.power(float64(p.K+1), r, "TypeError") * c.power(s.lrMax, weightLRPower, "TypeError"))
	s.weightSum = p.WeightSum + weight
	if s.weightSum != 0 {
		s.ck = weight / s.weightSum
	}
	return s
}

func (p *ScheduleFreeProgress) advance(s scheduleFreeStep) {
	p.K++
	p.WeightSum, p.LRMax, p.ScheduledLR = s.weightSum, s.lrMax, s.lr
}

func (p *ScheduleFreeProgress) ready(optimizer string) error {
	if !p.TrainMode {
		return fmt.Errorf("goptim: %s: not in train mode, expected a call of Train before Step: %w", optimizer, ErrOption)
	}
	return nil
}

func (o *AdamWScheduleFreeOptions) scalars(c *stepContext) kernel.ScheduleFree {
	h := o.next(c).scalars(c, o.Betas[0], o.WeightDecay)
	setMoments(&h, c, o.Betas[1], o.K+1, o.Eps)
	h.Normalizes = 1
	return h
}

func (o *SGDScheduleFreeOptions) scalars(c *stepContext) kernel.SGDScheduleFree {
	return kernel.SGDScheduleFree{ScheduleFree: o.next(c).scalars(c, o.Momentum, o.WeightDecay)}
}

func (o *RAdamScheduleFreeOptions) scalars(c *stepContext) kernel.ScheduleFree {
	s := o.next(c)
	h := s.scalars(c, o.Betas[0], o.WeightDecay)
	setMoments(&h, c, o.Betas[1], o.K+1, o.Eps)
	h.Normalizes = kernel.Flag(s.rectified)
	return h
}

// scalars returns the scalars of a step except those of the second moment.
func (s scheduleFreeStep) scalars(c *stepContext, momentum, weightDecay float64) kernel.ScheduleFree {
	coupled := c.coupled(false, weightDecay)
	return kernel.ScheduleFree{
		Couples: coupled.Couples, WeightDecay: coupled.WeightDecay,
		CK:    c.weight(s.ck),
		Step:  c.narrow(s.lr * (float64(momentum*(1-s.ck)) - 1)),
		Minus: c.narrow(-s.lr),
	}
}

// setMoments sets the scalars of the second moment.
func setMoments(h *kernel.ScheduleFree, c *stepContext, beta2 float64, t int, eps float64) {
	h.Beta2, h.C2, h.BC2, h.Eps = beta2, c.narrow(1-beta2), 1-c.power(beta2, float64(t), "TypeError"), eps
}

// switchMode interpolates each value that has been stepped between the value and z, its first state.
func switchMode[T Element, O, S any](e *elementwise[T, O, S], mode *bool, train bool, momentum float64) error {
	if err := e.usable(); err != nil {
		return err
	}
	if *mode == train {
		return nil
	}
	if err := errors.Join(e.checkStorage(), e.checkValues()); err != nil {
		return err
	}
	weight := 1 - momentum
	if !train {
		weight = 1 - 1/momentum
	}
	if momentum == 0 && !train && slices.ContainsFunc(e.states, func(s paramState) bool { return s.columns[0].made() }) {
		return fmt.Errorf("goptim: %s: the first beta is 0, expected a positive number for Eval: %w", e.rule.name(), ErrOption)
	}
	e.rows = e.rows[:0]
	flag, extra := e.flags(dtype[T]())
	for i, p := range e.params {
		s := &e.states[i]
		z := &s.columns[0]
		if !z.made() {
			continue
		}
		*z = z.as(e.stateType(dtype[T]()))
		makeExtra(&s.extras, p.Value, flag, extra)
		row := engine.Row{
			N: int64(z.n), Param: address(p.Value), Grad: address(p.Value), Types: engine.TypesOf(dtype[T](), engine.Float32),
			Step: engine.Address(unsafe.Pointer(&s.step)),
		}
		row.State[0], row.StateType[0] = z.address(), z.d
		e.addStorage(&row, i)
		e.rows = append(e.rows, row)
	}
	var pass pass[kernel.Average]
	pass.begin(scheduleFreeSwitch.arithmetic, e.rows)
	rule := &bound[lerpOptions, kernel.Average]{scheduleFreeSwitch, &lerpOptions{weight}}
	err := pass.add(rule, len(e.rows), stepContext{pow: cpow.Pow, seed: e.Seed})
	if err == nil {
		err = engine.Run(&pass, e.rows, threadsOf(*e.workers), nil)
	}
	runtime.KeepAlive(e) // the rows contain addresses
	if err == nil {
		*mode = train
	}
	return err
}
