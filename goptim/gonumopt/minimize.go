package gonumopt

import (
	"math"
	"slices"
	"sync"

	"gonum.org/v1/gonum/optimize"
)

// Problem is the problem of a function that computes loss and gradient together, and writes the gradient at x to grad. It
// is evaluated once where gonum asks for both.
func Problem(evaluate func(x, grad []float64) float64) optimize.Problem {
	var mu sync.Mutex
	var at, grad []float64
	var loss float64
	// ask evaluates, if x is not where it was evaluated last, or it was asked for the same thing there.
	var asked [2]bool
	ask := func(x []float64, what int) {
		if at == nil || asked[what] || !slices.Equal(at, x) {
			at = append(at[:0], x...)
			grad = slices.Grow(grad[:0], len(x))[:len(x)]
			loss, asked = evaluate(x, grad), [2]bool{}
		}
		asked[what] = true
	}
	return optimize.Problem{
		Func: func(x []float64) float64 {
			mu.Lock()
			defer mu.Unlock()
			ask(x, 0)
			return loss
		},
		Grad: func(g, x []float64) {
			mu.Lock()
			defer mu.Unlock()
			ask(x, 1)
			copy(g, grad)
		},
	}
}

// Minimize takes up to some steps of a method from x, which it leaves as it is. evaluate writes the gradient at a point to
// grad and returns the loss there; it may be random, as of the next batch.
func Minimize(evaluate func(x, grad []float64) float64, x []float64, steps int, method optimize.Method) (*optimize.Result, error) {
	return optimize.Minimize(Problem(evaluate), x, Steps(steps), method)
}

// Steps are settings that end a run after so many major iterations, and not before for a lack of improvement.
func Steps(n int) *optimize.Settings {
	return &optimize.Settings{MajorIterations: n, Converger: optimize.NeverTerminate{}}
}

// NoImprovement is an optimize.Converger that ends a run when the average of the loss has found no new low for a number
// of major iterations, with the status FunctionConvergence. The average forgets as Adam's does, so that the first losses
// count in full: Σ Decay^k·loss / Σ Decay^k.
type NoImprovement struct {
	Patience int     // iterations without a new low; 0 never ends a run
	Decay    float64 // of the average, in [0, 1); 0 takes the last loss alone, 0.99 about the last hundred
	Absolute float64 // by how much an average must be below the lowest
	Relative float64 // the same, as a share of the lowest one's magnitude

	sum, weight, low float64
	without          int
}

var _ optimize.Converger = (*NoImprovement)(nil)

// Init implements optimize.Converger.
func (n *NoImprovement) Init(int) { n.sum, n.weight, n.low, n.without = 0, 0, math.Inf(1), 0 }

// Converged implements optimize.Converger.
func (n *NoImprovement) Converged(l *optimize.Location) optimize.Status {
	n.sum, n.weight = n.Decay*n.sum+l.F, n.Decay*n.weight+1
	margin := n.Absolute
	if !math.IsInf(n.low, 0) {
		margin += n.Relative * math.Abs(n.low)
	}
	if average := n.sum / n.weight; average < n.low-margin {
		n.low, n.without = average, 0
		return optimize.NotTerminated
	}
	n.without++
	if n.Patience > 0 && n.without >= n.Patience {
		return optimize.FunctionConvergence
	}
	return optimize.NotTerminated
}
