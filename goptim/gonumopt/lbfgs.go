package gonumopt

import (
	"math"
	"slices"

	"gonum.org/v1/gonum/floats"
	"gonum.org/v1/gonum/optimize"

	"github.com/goptim/goptim/goptim"
)

// LBFGS is goptim.LBFGS as an optimize.Method. It computes the directions of goptim.LBFGS on several threads. With StrongWolfe,
// gonum's Linesearcher chooses the step along a direction, otherwise every step is LR times the direction. torch's line
// search, which goptim.LBFGS has, is not used: gonum's needs fewer evaluations for most of gonum's test functions.
//
// If the function or its gradient is NaN or infinite at a trial point, the line search backtracks towards the last point where
// they are finite. Without a line search, such a point ends the run with an error.
//
// A major iteration is one direction. The options MaxIter, MaxEval, the tolerances, and LR with StrongWolfe are ignored. A run
// continues as long as directions are descent directions.
type LBFGS struct {
	goptim.LBFGSOptions
	Linesearcher optimize.Linesearcher // for StrongWolfe; nil is optimize.Bisection, as in optimize.LBFGS
	Workers      int                   // the largest number of threads; 0 is GOMAXPROCS
	// GradStopThreshold ends a run if all elements of the gradient are smaller; 0 is 1e-12, and NaN never ends a run.
	GradStopThreshold float64

	ending
}

var (
	_ optimize.Method   = (*LBFGS)(nil)
	_ optimize.Statuser = (*LBFGS)(nil)
)

// Init implements optimize.Method.
func (l *LBFGS) Init(dim, tasks int) int { return l.init() }

// Uses implements optimize.Method: it requires a gradient.
func (l *LBFGS) Uses(has optimize.Available) (optimize.Available, error) { return uses(has) }

// Run implements optimize.Method.
func (l *LBFGS) Run(operation chan<- optimize.Task, result <-chan optimize.Task, tasks []optimize.Task) {
	r := &run{operation: operation, result: result, task: tasks[0], threshold: l.GradStopThreshold}
	r.end(l.steps(r), &l.ending)
}

func (l *LBFGS) steps(r *run) error {
	o := l.LBFGSOptions
	o.MaxIter, o.MaxEval, o.ToleranceGrad, o.ToleranceChange, o.StrongWolfe = 1, 1, -1, 1e-300, false
	search := l.Linesearcher
	if search == nil {
		search = &optimize.Bisection{}
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
	closure := func() (float64, error) {
		copy(p.Grad, r.task.Gradient)
		if l.StrongWolfe {
			floats.Scale(scale, p.Grad)
		}
		return r.task.F, nil
	}
	before, direction := slices.Clone(p.Value), make([]float64, len(p.Value))
	for first := true; ; first = false {
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
		if !l.StrongWolfe {
			if err := r.evaluate(p.Value); err != nil {
				return err
			}
			continue
		}
		floats.SubTo(direction, p.Value, before)
		step := 1.0
		if first {
			step = 1 / floats.Norm(direction, 2) // no curvature is known to scale it
		}
		step, err := r.search(search, before, direction, step)
		if err != nil {
			return err
		}
		opt.Rescale(step)
		copy(p.Value, r.task.X)
	}
}

// scale multiplies gradients for goptim.LBFGS, whose directions do not depend on it. Like torch, goptim.LBFGS ignores curvature
// below 1e-10, which is common near a minimum, especially one with a singular Hessian.
const scale = 0x1p80

// mostRestarts is the largest number of restarts of a line search. Each one halves the distance to a point where the function is
// not finite.
const mostRestarts = 100

// search searches along a direction from x, where the function is known, beginning with step times the direction, and returns the
// step to the resulting point.
func (r *run) search(search optimize.Linesearcher, x, direction []float64, step float64) (float64, error) {
	const both = optimize.FuncEvaluation | optimize.GradEvaluation
	loss, slope := r.task.F, floats.Dot(r.task.Gradient, direction)
	if !(slope < 0) {
		return 0, stop{optimize.StepConvergence}
	}
	finite, limit := 0.0, math.Inf(1) // the largest step with a finite function and gradient, and the smallest without
	last, known := math.NaN(), optimize.NoOperation
	var broken error // what is not finite at the limit
	ended := func() error {
		if finite == 0 && broken != nil {
			return broken
		}
		return stop{optimize.StepConvergence}
	}
	op := search.Init(loss, slope, step)
	for restarts := 0; restarts < mostRestarts; {
		bad := step >= limit
		if !bad {
			if step != last {
				floats.AddScaledTo(r.task.X, x, step, direction)
				last, known = step, optimize.NoOperation
				if floats.Equal(r.task.X, x) {
					return 0, ended()
				}
			}
			if err := r.complete(op&both, &known); err != nil {
				return 0, err
			}
			if err := r.checkOf(known); err != nil {
				bad, broken = true, err
			}
		}
		if bad {
			limit = min(limit, step)
			step = (finite + limit) / 2
			op = search.Init(loss, slope, step)
			restarts++
			continue
		}
		finite = max(finite, step)
		f, g := math.NaN(), math.NaN()
		if known&optimize.FuncEvaluation != 0 {
			f = r.task.F
		}
		if known&optimize.GradEvaluation != 0 {
			g = floats.Dot(r.task.Gradient, direction)
		}
		next, to, err := search.Iterate(f, g)
		if err != nil && !(f < loss) {
			return 0, ended()
		}
		if err != nil || next == optimize.MajorIteration {
			if err := r.complete(both, &known); err != nil {
				return 0, err
			}
			if err := r.check(); err == nil {
				return step, nil
			} else if broken = err; step > 0 {
				limit, finite = step, 0
				continue
			}
		}
		op, step = next, to
	}
	return 0, optimize.ErrLinesearcherFailure
}

// complete evaluates the requested values that are not known yet.
func (r *run) complete(asked optimize.Operation, known *optimize.Operation) error {
	if asked &^= *known; asked == 0 {
		return nil
	}
	*known |= asked
	return r.do(asked)
}
