// Package gonumopt makes goptim's optimizers methods of gonum's optimize.Minimize.
//
// LBFGS takes the place of gonum's own LBFGS and BFGS. The others move along every gradient that they see, uphill as well,
// without a line search, for any number of steps: gonum's default for Settings.Converger stops a run that has not
// improved for a hundred steps, as these do for a while; Steps makes Settings without it, and NoImprovement is a
// Converger that looks at averages, as a function of random batches needs. Like all runs of gonum's, a run also ends where
// the gradient is small: GradStopThreshold of the method, and Settings.GradientThreshold.
//
// The result of a run is where it ended, which need not be the best point that it has seen.
package gonumopt

import (
	"fmt"
	"math"

	"gonum.org/v1/gonum/optimize"

	"github.com/goptim/goptim/goptim"
)

// A Params is what an optimizer of all variables is made of: one parameter.
type Params = []*goptim.Param[float64]

// Method is a first-order optimizer as an optimize.Method. It evaluates function and gradient once a step, and every step
// is a major iteration. The functions of this package make it of options; New may be any function, as of one that has
// groups, for parameters that share the memory of its own:
//
//	New: func(p gonumopt.Params) (goptim.Optimizer, error) {
//		a := &goptim.Param[float64]{Value: p[0].Value[:10], Grad: p[0].Grad[:10]}
//		…
//	}
type Method struct {
	New func(p Params) (goptim.Optimizer, error) // makes the optimizer when a run begins
	// Before, if it is not nil, is called before every step, the first of which is 0: to change options.
	Before func(step int)
	// GradStopThreshold ends a run where no element of the gradient is so large; 0 is 1e-12, NaN is never.
	GradStopThreshold float64

	ending
}

// ending is how a run ended by itself, for optimize.Statuser.
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

// Uses implements optimize.Method: a gradient is needed.
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

// A run talks with Minimize. Its errors end it.
type run struct {
	operation chan<- optimize.Task
	result    <-chan optimize.Task
	task      optimize.Task // whose Location holds what was evaluated last
	threshold float64
}

// stop is an error that is none: Minimize ends the run, or the method has converged.
type stop struct{ status optimize.Status }

func (s stop) Error() string { return fmt.Sprintf("gonumopt: %v", s.status) }

// errStopped is the end of a run by Minimize.
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

// first evaluates what is not known of the initial location.
func (r *run) first() error {
	const both = optimize.FuncEvaluation | optimize.GradEvaluation
	if r.task.Op&both != both {
		if err := r.do(both); err != nil {
			return err
		}
	}
	return r.check()
}

// evaluate goes to x.
func (r *run) evaluate(x []float64) error {
	copy(r.task.X, x)
	if err := r.do(optimize.FuncEvaluation | optimize.GradEvaluation); err != nil {
		return err
	}
	return r.check()
}

func (r *run) check() error { return r.checkOf(optimize.FuncEvaluation | optimize.GradEvaluation) }

// checkOf reports what is not finite of what is known.
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

// major tells Minimize that the location is one of the run's.
func (r *run) major() error {
	if err := r.do(optimize.MajorIteration); err != nil {
		return err
	}
	threshold := r.threshold
	if threshold == 0 {
		threshold = 1e-12
	}
	for _, g := range r.task.Gradient { // the first one tells, but at the end of a run
		if !(math.Abs(g) < threshold) {
			return nil
		}
	}
	return stop{optimize.GradientThreshold}
}

// end ends the run with Minimize, by the protocol of optimize.Method: how is known before operation is closed.
func (r *run) end(err error, how *ending) {
	*how = ending{optimize.Failure, err}
	if s, ok := err.(stop); ok {
		*how = ending{status: s.status}
	}
	if err != errStopped {
		r.task.Op = optimize.MethodDone
		r.operation <- r.task
	}
	for range r.result { // to its end, before the other channel's
	}
	close(r.operation)
}
