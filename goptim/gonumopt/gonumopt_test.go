package gonumopt_test

import (
	"errors"
	"fmt"
	"log"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gonum.org/v1/gonum/floats"
	"gonum.org/v1/gonum/optimize"
	"gonum.org/v1/gonum/optimize/functions"

	"github.com/goptim/goptim/goptim"
	"github.com/goptim/goptim/goptim/gonumopt"
	"github.com/goptim/goptim/goptim/schedule"
)

func ExampleLBFGS() {
	f := functions.ExtendedRosenbrock{}
	result, err := optimize.Minimize(optimize.Problem{Func: f.Func, Grad: f.Grad}, []float64{-1.2, 1, -1.2, 1}, nil,
		&gonumopt.LBFGS{LBFGSOptions: goptim.LBFGSOptions{StrongWolfe: true}})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%.4f %v\n", result.X, result.Status)
	// Output: [1.0000 1.0000 1.0000 1.0000] GradientThreshold
}

func ExampleMinimize() {
	// A least-squares fit of a line, with a function that returns the loss and the gradient.
	xs, ys := []float64{0, 1, 2, 3}, []float64{1, 3, 5, 7}
	result, err := gonumopt.Minimize(func(line, grad []float64) (loss float64) {
		clear(grad)
		for i, x := range xs {
			residual := line[0]*x + line[1] - ys[i]
			loss += residual * residual / 2
			grad[0] += residual * x
			grad[1] += residual
		}
		return loss
	}, []float64{0, 0}, 2000, gonumopt.Adam(goptim.AdamOptions{LR: 0.05}))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%.3f\n", result.X)
	// Output: [2.000 1.000]
}

// A schedule that changes the options of the optimizer created by New.
func ExampleMethod() {
	var adam *goptim.Adam[float64]
	rate, err := schedule.Cosine(0.1, 3000, 0)
	if err != nil {
		log.Fatal(err)
	}
	method := &gonumopt.Method{
		New: func(p gonumopt.Params) (_ goptim.Optimizer, err error) {
			adam, err = goptim.NewAdam(p, goptim.AdamOptions{})
			return adam, err
		},
		Before: func(step int) { adam.LR = rate(step) },
	}
	f := functions.Beale{}
	problem := optimize.Problem{Func: f.Func, Grad: f.Grad}
	result, err := optimize.Minimize(problem, []float64{1, 1}, gonumopt.Steps(3000), method)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%.3f\n", result.X)
	// Output: [3.000 0.500]
}

type function interface {
	Func(x []float64) float64
	Grad(grad, x []float64)
	Minima() []functions.Minimum
}

// problems are functions of gonum with the initial points of gonum's own tests.
var problems = map[string]struct {
	function
	start []float64
}{
	"Beale":              {functions.Beale{}, []float64{1, 1}},
	"Wood":               {functions.Wood{}, []float64{-3, -1, -3, -1}},
	"ExtendedRosenbrock": {functions.ExtendedRosenbrock{}, []float64{-1.2, 1, -1.2, 1}},
	"ExtendedPowell":     {functions.ExtendedPowellSingular{}, []float64{3, -1, 0, 1}},
	"BrownBadlyScaled":   {functions.BrownBadlyScaled{}, []float64{1, 1}},
	"Trigonometric":      {functions.Trigonometric{}, []float64{.5, .5, .5, .5, .5}},
	"BiggsEXP2":          {functions.BiggsEXP2{}, []float64{1, 2}},
	"Watson":             {functions.Watson{}, []float64{0, 0, 0, 0, 0, 0}},
}

func distance(f function, x []float64) float64 {
	least := math.Inf(1)
	for _, m := range f.Minima() {
		least = min(least, floats.Distance(x, m.X, math.Inf(1)))
	}
	return least
}

// TestLBFGSBesideGonums checks that LBFGS finds the minima in about as many evaluations as gonum's methods.
func TestLBFGSBesideGonums(t *testing.T) {
	for name, p := range problems {
		problem := optimize.Problem{Func: p.Func, Grad: p.Grad}
		evaluations := map[string]int{}
		for method, m := range map[string]optimize.Method{
			"goptim LBFGS": &gonumopt.LBFGS{LBFGSOptions: goptim.LBFGSOptions{StrongWolfe: true}},
			"gonum LBFGS":  &optimize.LBFGS{}, "gonum BFGS": &optimize.BFGS{},
		} {
			result, err := optimize.Minimize(problem, p.start, &optimize.Settings{GradientThreshold: 1e-10}, m)
			if method == "goptim LBFGS" {
				require.NoError(t, err, name)
				lowest := math.Inf(1)
				for _, m := range p.Minima() {
					if len(m.X) == len(p.start) {
						lowest = min(lowest, m.F)
					}
				}
				assert.Less(t, result.F-lowest, 1e-8, "%s: %v", name, result.X)
				assert.Less(t, result.MajorIterations, 400)
			}
			evaluations[method] = result.GradEvaluations
		}
		t.Logf("%s: evaluations of the gradient: %v", name, evaluations)
		assert.Less(t, float64(evaluations["goptim LBFGS"]), 1.5*float64(max(evaluations["gonum LBFGS"], evaluations["gonum BFGS"])), name)
	}
}

// TestLBFGSBesideNaN checks that the line search backtracks from trial points outside the domain of a function.
func TestLBFGSBesideNaN(t *testing.T) {
	for name, f := range map[string]func(x, grad []float64) float64{
		"x - log x": func(x, grad []float64) float64 {
			grad[0] = 1 - 1/x[0]
			return x[0] - math.Log(x[0])
		},
		"infinite beyond a barrier": func(x, grad []float64) float64 {
			grad[0] = x[0] - 1
			if x[0] < .9 {
				return math.Inf(1)
			}
			return (x[0] - 1) * (x[0] - 1) / 2
		},
		"a gradient that is NaN": func(x, grad []float64) float64 {
			if grad[0] = x[0] - 1; x[0] < .9 {
				grad[0] = math.NaN()
			}
			return (x[0] - 1) * (x[0] - 1) / 2
		},
	} {
		for searcher, s := range map[string]optimize.Linesearcher{"default": nil, "MoreThuente": &optimize.MoreThuente{}} {
			for _, start := range []float64{5, 50, 1.01} {
				result, err := gonumopt.Minimize(f, []float64{start}, 200,
					&gonumopt.LBFGS{LBFGSOptions: goptim.LBFGSOptions{StrongWolfe: true}, Linesearcher: s})
				require.NoError(t, err, "%s from %v by %s", name, start, searcher)
				assert.InDelta(t, 1, result.X[0], 1e-6, "%s from %v by %s", name, start, searcher)
				assert.Less(t, result.FuncEvaluations, 150, "%s from %v by %s", name, start, searcher)
			}
		}
	}
}

// methods are all first-order methods, with numbers of steps that minimize Beale's function.
var methods = map[string]struct {
	*gonumopt.Method
	steps int
}{
	"SGD":       {gonumopt.SGD(goptim.SGDOptions{LR: 1e-2, Momentum: .9}), 3000},
	"Adam":      {gonumopt.Adam(goptim.AdamOptions{LR: .02}), 3000},
	"AdamW":     {gonumopt.AdamW(goptim.AdamOptions{LR: .02}), 3000},
	"AMSGrad":   {gonumopt.AMSGrad(goptim.AdamOptions{LR: .02}), 3000},
	"Adagrad":   {gonumopt.Adagrad(goptim.AdagradOptions{LR: .5}), 5000},
	"Adadelta":  {gonumopt.Adadelta(goptim.AdadeltaOptions{LR: .01}), 20000},
	"Adafactor": {gonumopt.Adafactor(goptim.AdafactorOptions{LR: .1}, 1, 2), 20000},
	"Adamax":    {gonumopt.Adamax(goptim.AdamaxOptions{LR: .02}), 3000},
	"ASGD":      {gonumopt.ASGD(goptim.ASGDOptions{LR: .02}), 20000},
	"NAdam":     {gonumopt.NAdam(goptim.NAdamOptions{LR: .02}), 3000},
	"RAdam":     {gonumopt.RAdam(goptim.RAdamOptions{LR: .02}), 3000},
	"RMSprop":   {gonumopt.RMSprop(goptim.RMSpropOptions{LR: 1e-3}), 5000},
	"Rprop":     {gonumopt.Rprop(goptim.RpropOptions{}), 3000},
	"Muon":      {gonumopt.Muon(goptim.MuonOptions{LR: 2e-3, NSSteps: 5}, 1, 2), 5000},
}

func TestMethodsFindAMinimum(t *testing.T) {
	f := functions.Beale{}
	problem := optimize.Problem{Func: f.Func, Grad: f.Grad}
	for name, m := range methods {
		result, err := optimize.Minimize(problem, []float64{1, 1}, gonumopt.Steps(m.steps), m)
		require.NoError(t, err, name)
		assert.Less(t, distance(f, result.X), .05, "%s: %v after %d", name, result.X, result.MajorIterations)
		assert.Equal(t, result.GradEvaluations, result.FuncEvaluations)
	}
}

// made is a method and the equivalent optimizer.
type made struct {
	method *gonumopt.Method
	build  func(p gonumopt.Params) (goptim.Optimizer, error)
}

func of[O any, Opt goptim.Optimizer](o O, method func(O) *gonumopt.Method, build func(gonumopt.Params, O) (Opt, error)) made {
	return made{method(o), func(p gonumopt.Params) (goptim.Optimizer, error) { return build(p, o) }}
}

// TestMethodIsTheOptimizer checks that a run of Minimize takes the same steps as the optimizer.
func TestMethodIsTheOptimizer(t *testing.T) {
	f := functions.Wood{}
	adam := goptim.AdamOptions{LR: .1, WeightDecay: .1}
	shaped := func(shape ...int) func(p gonumopt.Params) gonumopt.Params {
		return func(p gonumopt.Params) gonumopt.Params { p[0].Shape = shape; return p }
	}
	for name, m := range map[string]made{
		"SGD":      of(goptim.SGDOptions{LR: 1e-4, Momentum: .5}, gonumopt.SGD, goptim.NewSGD[float64]),
		"Adam":     of(adam, gonumopt.Adam, goptim.NewAdam[float64]),
		"AdamW":    of(adam, gonumopt.AdamW, goptim.NewAdamW[float64]),
		"AMSGrad":  of(adam, gonumopt.AMSGrad, goptim.NewAMSGrad[float64]),
		"Adagrad":  of(goptim.AdagradOptions{LR: .5}, gonumopt.Adagrad, goptim.NewAdagrad[float64]),
		"Adadelta": of(goptim.AdadeltaOptions{LR: .5}, gonumopt.Adadelta, goptim.NewAdadelta[float64]),
		"Adamax":   of(goptim.AdamaxOptions{LR: .1}, gonumopt.Adamax, goptim.NewAdamax[float64]),
		"ASGD":     of(goptim.ASGDOptions{LR: 1e-4, Lambd: .1}, gonumopt.ASGD, goptim.NewASGD[float64]),
		"NAdam":    of(goptim.NAdamOptions{LR: .1}, gonumopt.NAdam, goptim.NewNAdam[float64]),
		"RAdam":    of(goptim.RAdamOptions{LR: 1e-4}, gonumopt.RAdam, goptim.NewRAdam[float64]),
		"RMSprop":  of(goptim.RMSpropOptions{LR: .1}, gonumopt.RMSprop, goptim.NewRMSprop[float64]),
		"Rprop":    of(goptim.RpropOptions{LR: .1}, gonumopt.Rprop, goptim.NewRprop[float64]),
		"Adafactor": {gonumopt.Adafactor(goptim.AdafactorOptions{LR: .1}, 2, 2), func(p gonumopt.Params) (goptim.Optimizer, error) {
			return goptim.NewAdafactor(shaped(2, 2)(p), goptim.AdafactorOptions{LR: .1})
		}},
		"Muon": {gonumopt.Muon(goptim.MuonOptions{LR: .1}, 4, 1), func(p gonumopt.Params) (goptim.Optimizer, error) {
			return goptim.NewMuon(shaped(4, 1)(p), goptim.MuonOptions{LR: .1})
		}},
	} {
		p := &goptim.Param[float64]{Value: []float64{-3, -1, -3, -1}, Grad: make([]float64, 4)}
		opt, err := m.build(gonumopt.Params{p})
		require.NoError(t, err)
		for range 99 {
			f.Grad(p.Grad, p.Value)
			require.NoError(t, opt.Step())
		}
		var before []int
		m.method.Before = func(step int) { before = append(before, step) }
		for range 2 { // a method is reusable
			before = nil
			result, err := optimize.Minimize(optimize.Problem{Func: f.Func, Grad: f.Grad}, []float64{-3, -1, -3, -1}, gonumopt.Steps(100), m.method)
			require.NoError(t, err, name)
			assert.Equal(t, p.Value, result.X, name)
			assert.Equal(t, optimize.IterationLimit, result.Status)
			assert.Equal(t, 100, result.GradEvaluations)
			assert.Equal(t, []int{0, 1, 98}, []int{before[0], before[1], before[len(before)-1]})
		}
	}
}

// TestMethodOfGroups uses groups that share the memory of the variables.
func TestMethodOfGroups(t *testing.T) {
	f := functions.Wood{}
	problem, start := optimize.Problem{Func: f.Func, Grad: f.Grad}, []float64{-3, -1, -3, -1}
	o := goptim.AdamOptions{LR: .1}
	whole, err := optimize.Minimize(problem, start, gonumopt.Steps(100), gonumopt.Adam(o))
	require.NoError(t, err)
	groups, err := optimize.Minimize(problem, start, gonumopt.Steps(100), &gonumopt.Method{New: func(p gonumopt.Params) (goptim.Optimizer, error) {
		var all []goptim.Optimizer
		for i := range 2 {
			part := &goptim.Param[float64]{Value: p[0].Value[2*i:][:2], Grad: p[0].Grad[2*i:][:2]}
			one, err := goptim.NewAdam(gonumopt.Params{part}, o)
			if err != nil {
				return nil, err
			}
			all = append(all, one)
		}
		return goptim.NewGroups(all...)
	}})
	require.NoError(t, err)
	assert.Equal(t, whole.X, groups.X)
}

func TestRunsEnd(t *testing.T) {
	bowl := func(x, grad []float64) float64 {
		copy(grad, x)
		return floats.Dot(x, x) / 2
	}
	problem := gonumopt.Problem(bowl)
	for name, method := range map[string]optimize.Method{
		"SGD": gonumopt.SGD(goptim.SGDOptions{LR: .5}), "LBFGS": &gonumopt.LBFGS{},
		"LBFGS strong Wolfe": &gonumopt.LBFGS{LBFGSOptions: goptim.LBFGSOptions{StrongWolfe: true}},
	} {
		t.Run(name, func(t *testing.T) {
			start := []float64{1, 2}
			result, err := optimize.Minimize(problem, start, nil, method)
			require.NoError(t, err)
			assert.Equal(t, optimize.GradientThreshold, result.Status)
			assert.Equal(t, []float64{1, 2}, start)
			result, err = optimize.Minimize(problem, start, &optimize.Settings{GradientThreshold: .1}, method)
			require.NoError(t, err)
			assert.Equal(t, optimize.GradientThreshold, result.Status)
			result, err = optimize.Minimize(problem, start, &optimize.Settings{FuncEvaluations: 2}, method)
			require.NoError(t, err)
			assert.Equal(t, optimize.FunctionEvaluationLimit, result.Status)
			result, err = optimize.Minimize(problem, []float64{0, 0}, nil, method)
			require.NoError(t, err)
			assert.Equal(t, optimize.GradientThreshold, result.Status, "it begins at the minimum")
			known := &optimize.Settings{InitValues: &optimize.Location{F: 2.5, Gradient: []float64{1, 2}}, MajorIterations: 1}
			result, err = optimize.Minimize(problem, start, known, method)
			require.NoError(t, err)
			assert.Zero(t, result.FuncEvaluations, "what is known is not evaluated")

			for _, bad := range []float64{math.NaN(), math.Inf(1)} {
				calls := 0
				_, err = gonumopt.Minimize(func(x, grad []float64) float64 {
					if calls++; calls > 1 {
						return bad
					}
					return bowl(x, grad)
				}, start, 10, method)
				var of optimize.ErrFunc
				require.ErrorAs(t, err, &of)
			}
			for _, bad := range []float64{math.NaN(), math.Inf(1), math.Inf(-1)} {
				_, err = gonumopt.Minimize(func(x, grad []float64) float64 { grad[1] = bad; return 0 }, start, 10, method)
				var of optimize.ErrGrad
				require.ErrorAs(t, err, &of)
			}
			_, err = method.Uses(optimize.Available{})
			require.ErrorIs(t, err, optimize.ErrMissingGrad)
		})
	}
	_, err := gonumopt.Minimize(bowl, []float64{1}, 10, gonumopt.SGD(goptim.SGDOptions{LR: -1}))
	require.ErrorIs(t, err, goptim.ErrOption)
	_, err = gonumopt.Minimize(bowl, []float64{1}, 10, &gonumopt.LBFGS{LBFGSOptions: goptim.LBFGSOptions{LR: -1}})
	require.ErrorIs(t, err, goptim.ErrOption)
	broken := errors.New("broken")
	_, err = gonumopt.Minimize(bowl, []float64{1}, 10, &gonumopt.Method{New: func(gonumopt.Params) (goptim.Optimizer, error) { return nil, broken }})
	require.ErrorIs(t, err, broken)
	_, err = gonumopt.Minimize(bowl, []float64{1}, 10, &gonumopt.Method{})
	require.ErrorContains(t, err, "New is nil")
	flat, err := gonumopt.Minimize(func(x, grad []float64) float64 { grad[0] = 1e-200; return 0 }, []float64{1}, 10,
		&gonumopt.LBFGS{GradStopThreshold: math.NaN()})
	require.NoError(t, err)
	assert.Equal(t, optimize.StepConvergence, flat.Status, "no direction moves it")
}

// TestNoImprovement checks that a run on random batches continues while it improves, where gonum's own criterion stops it, and ends
// afterwards.
func TestNoImprovement(t *testing.T) {
	run := func(converger optimize.Converger) *optimize.Result {
		r := rand.New(rand.NewPCG(1, 2))
		result, err := optimize.Minimize(gonumopt.Problem(func(x, grad []float64) float64 {
			for i := range x {
				grad[i] = x[i] - 3 + r.NormFloat64()
			}
			return floats.Dot(grad, grad) / 2
		}), make([]float64, 4), &optimize.Settings{Converger: converger, MajorIterations: 100_000}, gonumopt.Adam(goptim.AdamOptions{LR: 2e-3}))
		require.NoError(t, err)
		return result
	}
	early, late := run(nil), run(&gonumopt.NoImprovement{Patience: 300, Decay: .99})
	assert.Equal(t, optimize.FunctionConvergence, early.Status)
	assert.Equal(t, optimize.FunctionConvergence, late.Status)
	assert.Greater(t, floats.Distance(early.X, []float64{3, 3, 3, 3}, math.Inf(1)), .5, "%d", early.MajorIterations)
	assert.Less(t, floats.Distance(late.X, []float64{3, 3, 3, 3}, math.Inf(1)), .3, "%d", late.MajorIterations)
	assert.Less(t, late.MajorIterations, 20_000)

	never := new(gonumopt.NoImprovement)
	never.Init(1)
	for range 100 {
		assert.Equal(t, optimize.NotTerminated, never.Converged(&optimize.Location{F: 1}))
	}
	n := &gonumopt.NoImprovement{Patience: 2, Absolute: .5, Relative: .1}
	for range 2 {
		n.Init(1)
		for i, f := range []float64{10, 9, 8, 7.4, 6} { // a new minimum is below 9/10 of the old one and 0.5 below it
			assert.Equal(t, optimize.NotTerminated, n.Converged(&optimize.Location{F: f}), "loss %d: %v", i, f)
		}
		assert.Equal(t, optimize.NotTerminated, n.Converged(&optimize.Location{F: 5}))
		assert.Equal(t, optimize.FunctionConvergence, n.Converged(&optimize.Location{F: 5}))
	}
}

func TestProblemEvaluatesOnce(t *testing.T) {
	calls := 0
	p := gonumopt.Problem(func(x, grad []float64) float64 {
		calls++
		copy(grad, x)
		return x[0] + float64(calls)
	})
	x, grad := []float64{5}, []float64{0}
	assert.Equal(t, 6., p.Func(x))
	p.Grad(grad, x)
	assert.Equal(t, 1, calls)
	assert.Equal(t, x, grad)
	assert.Equal(t, 7., p.Func(x), "asked again, as of another batch")
	p.Grad(grad, x)
	x[0] = 6
	p.Grad(grad, x)
	assert.Equal(t, 9., p.Func(x))
	assert.Equal(t, 3, calls)
}
