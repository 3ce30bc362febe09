// Package gonumopt has goptim's optimizers as methods of gonum's optimize.Minimize.
//
// LBFGS can replace gonum's own LBFGS and BFGS. The others take a step for every gradient, without a line search, even if the
// function increases, for any number of steps. gonum's default Settings.Converger stops a run without an improvement in a
// hundred steps, which is too early for them. Steps returns Settings without it, and NoImprovement is a Converger that compares
// averages, for functions of random batches. A run also ends if the gradient is small, like all runs of gonum:
// GradStopThreshold of the method, and Settings.GradientThreshold.
//
// The result of a run is its last point, which is not necessarily the best one.
package gonumopt

import (
	"fmt"
	"math"

	"gonum.org/v1/gonum/optimize"

	"github.com/goptim/goptim/goptim"
)

// A Params is the parameter of an optimizer of all variables.
type Params = []*goptim.Param[float64]

// Method is a first-order optimizer as an optimize.Method. It evaluates the function and the gradient once per step, and every
// step is a major iteration. The functions of this package create it from options. New may be any function, for example one
// that creates groups, with parameters that share the memory of p:
//
//	New: func(p gonumopt.Params) (goptim.Optimizer, error) {
//		a := &goptim.Param[float64]{Value: p[0].Value[:10], Grad: p[0].Grad[:10]}
//		…
//	}
type Method struct {
	New func(p Params) (goptim.Optimizer, error) // creates the optimizer at the start of a run
	// Before, if not nil, is called before every step, for example to change options. The first step is 0.
	Before func(step int)
	// GradStopThreshold ends a run if all elements of the gradient are smaller; 0 is 1e-12, and NaN never ends a run.
	GradStopThreshold float64

	ending
}

// ending is the status of a run that the method ended, for optimize.Statuser.
type ending struct {
	status optimize.Status
	err    error
}

// Status implements optimize.Statuser.
func (e *ending) Status() (optimize.Status, error) { return e.status, e.err }

var (
	_ optimize.Method   = (*Method)(nil)
	_ optimize.Statuser = (*Method)(nil)
)

// Init implements optimize.Method.
func (m *Method) Init(dim, tasks int) int { return m.init() }

func (e *ending) init() int {
	*e = ending{}
	return 1
}

// Uses implements optimize.Method: it requires a gradient.
func (m *Method) Uses(has optimize.Available) (optimize.Available, error) { return uses(has) }

func uses(has optimize.Available) (optimize.Available, error) {
	if !has.Grad {
		return optimize.Available{}, optimize.ErrMissingGrad
	}
	return optimize.Available{Grad: true}, nil
}

// Run implements optimize.Method.
func (m *Method) Run(operation chan<- optimize.Task, result <-chan optimize.Task, tasks []optimize.Task) {
	r := &run{operation: operation, result: result, task: tasks[0], threshold: m.GradStopThreshold}
	r.end(m.steps(r), &m.ending)
}

func (m *Method) steps(r *run) error {
	p := newParam(r.task.X)
	if m.New == nil {
		return fmt.Errorf("gonumopt: Method: New is nil: %w", goptim.ErrOption)
	}
	o, err := m.New(Params{p})
	if err != nil {
		return err
	}
	if err := r.first(); err != nil {
		return err
	}
	for step := 0; ; step++ {
		if err := r.major(); err != nil {
			return err
		}
		if m.Before != nil {
			m.Before(step)
		}
		copy(p.Grad, r.task.Gradient)
		if err := o.Step(); err != nil {
			return err
		}
		if err := r.evaluate(p.Value); err != nil {
			return err
		}
	}
}

func newParam(x []float64) *goptim.Param[float64] {
	return &goptim.Param[float64]{Name: "x", Value: append([]float64(nil), x...), Grad: make([]float64, len(x))}
}

// A run communicates with Minimize. An error ends it.
type run struct {
	operation chan<- optimize.Task
	result    <-chan optimize.Task
	task      optimize.Task // its Location has the last evaluation
	threshold float64
}

// stop is an error value for a normal end: Minimize ended the run, or the method converged.
type stop struct{ status optimize.Status }

func (s stop) Error() string { return fmt.Sprintf("gonumopt: %v", s.status) }

// errStopped means that Minimize ended the run.
var errStopped = stop{optimize.NotTerminated}

func (r *run) do(op optimize.Operation) error {
	r.task.Op = op
	r.operation <- r.task
	r.task = <-r.result
	if r.task.Op == optimize.PostIteration {
		return errStopped
	}
	return nil
}

// first evaluates the unknown values of the initial location.
func (r *run) first() error {
	const both = optimize.FuncEvaluation | optimize.GradEvaluation
	if r.task.Op&both != both {
		if err := r.do(both); err != nil {
			return err
		}
	}
	return r.check()
}

// evaluate evaluates the function and gradient at x.
func (r *run) evaluate(x []float64) error {
	copy(r.task.X, x)
	if err := r.do(optimize.FuncEvaluation | optimize.GradEvaluation); err != nil {
		return err
	}
	return r.check()
}

func (r *run) check() error { return r.checkOf(optimize.FuncEvaluation | optimize.GradEvaluation) }

// checkOf returns an error if a known value is not finite.
func (r *run) checkOf(known optimize.Operation) error {
	if known&optimize.FuncEvaluation != 0 && (math.IsNaN(r.task.F) || math.IsInf(r.task.F, 1)) {
		return optimize.ErrFunc(r.task.F)
	}
	if known&optimize.GradEvaluation == 0 {
		return nil
	}
	for i, g := range r.task.Gradient {
		if math.IsNaN(g) || math.IsInf(g, 0) {
			return optimize.ErrGrad{Grad: g, Index: i}
		}
	}
	return nil
}

// major reports a major iteration to Minimize.
func (r *run) major() error {
	if err := r.do(optimize.MajorIteration); err != nil {
		return err
	}
	threshold := r.threshold
	if threshold == 0 {
		threshold = 1e-12
	}
	for _, g := range r.task.Gradient { // usually the first element decides, except at the end of a run
		if !(math.Abs(g) < threshold) {
			return nil
		}
	}
	return stop{optimize.GradientThreshold}
}

// end ends the run according to the protocol of optimize.Method. The ending is set before operation is closed.
func (r *run) end(err error, how *ending) {
	*how = ending{optimize.Failure, err}
	if s, ok := err.(stop); ok {
		*how = ending{status: s.status}
	}
	if err != errStopped {
		r.task.Op = optimize.MethodDone
		r.operation <- r.task
	}
	for range r.result { // drain it before closing the other channel
	}
	close(r.operation)
}
