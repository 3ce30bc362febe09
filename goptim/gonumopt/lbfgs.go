package gonumopt

import (
	"slices"

	"gonum.org/v1/gonum/optimize"

	"github.com/goptim/goptim/goptim"
)

// LBFGS is goptim.LBFGS as an optimize.Method: the algorithm of gonum's LBFGS, with torch's line search if StrongWolfe
// asks for one, and else with steps of LR. A major iteration is one direction. Of the options MaxIter and
// ToleranceGrad have no meaning here; a MaxEval of 0 is 25 evaluations a direction, a ToleranceChange of 0 goes on as
// long as a direction leads downhill.
type LBFGS struct {
	goptim.LBFGSOptions
	Workers int // as many threads as an iteration may use; 0 means GOMAXPROCS
	// GradStopThreshold ends a run where no element of the gradient is so large; 0 is 1e-12, NaN is never.
	GradStopThreshold float64

	ending
}

var (
	_ optimize.Method   = (*LBFGS)(nil)
	_ optimize.Statuser = (*LBFGS)(nil)
)

// Init implements optimize.Method.
func (l *LBFGS) Init(dim, tasks int) int { return l.init() }

// Uses implements optimize.Method: a gradient is needed.
func (l *LBFGS) Uses(has optimize.Available) (optimize.Available, error) { return uses(has) }

// Run implements optimize.Method.
func (l *LBFGS) Run(operation chan<- optimize.Task, result <-chan optimize.Task, tasks []optimize.Task) {
	r := &run{operation: operation, result: result, task: tasks[0], threshold: l.GradStopThreshold}
	r.end(l.steps(r), &l.ending)
}

func (l *LBFGS) steps(r *run) error {
	o := l.LBFGSOptions
	o.MaxIter, o.ToleranceGrad = 1, -1
	if o.MaxEval == 0 {
		o.MaxEval = 25
	}
	if o.ToleranceChange == 0 {
		o.ToleranceChange = 1e-300
	}
	p := newParam(r.task.X)
	opt, err := goptim.NewLBFGS(Params{p}, o)
	if err != nil {
		return err
	}
	opt.Workers = l.Workers
	if err := r.first(); err != nil {
		return err
	}
	// A step begins where the last one ended, which it has often evaluated last.
	closure := func() (float64, error) {
		if !slices.Equal(p.Value, r.task.X) {
			if err := r.evaluate(p.Value); err != nil {
				return 0, err
			}
		}
		copy(p.Grad, r.task.Gradient)
		return r.task.F, nil
	}
	before := slices.Clone(p.Value)
	for {
		if _, err := closure(); err != nil {
			return err
		}
		if err := r.major(); err != nil {
			return err
		}
		copy(before, p.Value)
		if _, err := opt.Step(closure); err != nil {
			return err
		}
		if slices.Equal(before, p.Value) {
			return stop{optimize.StepConvergence}
		}
	}
}
