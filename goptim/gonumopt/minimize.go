package gonumopt

import (
	"math"
	"slices"
	"sync"

	"gonum.org/v1/gonum/optimize"
)

// Problem returns the problem of a function that returns the loss at x and writes the gradient to grad. It is evaluated once if
// gonum requests both.
func Problem(evaluate func(x, grad []float64) float64) optimize.Problem {
	var mu sync.Mutex
	var at, grad []float64
	var loss float64
	// ask evaluates the function unless x is the point of the last evaluation and the value was not requested there yet.
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

// Minimize takes up to the given number of steps of a method from x, which it does not change. evaluate writes the gradient at
// a point to grad and returns the loss. It may be random, for example that of the next batch.
func Minimize(evaluate func(x, grad []float64) float64, x []float64, steps int, method optimize.Method) (*optimize.Result, error) {
	return optimize.Minimize(Problem(evaluate), x, Steps(steps), method)
}

// Steps returns settings that end a run after the given number of major iterations, and not earlier without an improvement.
func Steps(n int) *optimize.Settings {
	return &optimize.Settings{MajorIterations: n, Converger: optimize.NeverTerminate{}}
}

// NoImprovement is an optimize.Converger that ends a run with the status FunctionConvergence if the average loss has not reached
// a new minimum for a number of major iterations. The average is bias-corrected like Adam's: Σ Decay^k·loss / Σ Decay^k.
type NoImprovement struct {
	Patience int     // iterations without a new minimum; 0 never ends a run
	Decay    float64 // decay of the average, in [0, 1); 0 uses only the last loss, 0.99 about the last hundred
	Absolute float64 // how much an average must be below the minimum
	Relative float64 // the same, relative to the minimum's magnitude

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
