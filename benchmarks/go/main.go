// Go prints the time of a step in Go: with goptim, with a plain loop over the elements, and with the corresponding method
// of gonum, GradientDescent or LBFGS, which supports float64 on one thread. Rounds are interleaved, and the best one
// counts:
//
//	GOEXPERIMENT=simd go run ./benchmarks/go [-sizes 1000,1000000,16000000] [-seconds 2] [-update docs/benchmarks.md]
package main

import (
	"flag"
	"fmt"
	"io"
	"log"
	"math"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"

	"gonum.org/v1/gonum/optimize"

	"github.com/goptim/goptim/goptim"
	"github.com/goptim/goptim/goptim/gonumopt"
)

func main() {
	sizes := flag.String("sizes", "1000,1000000,16000000", "elements")
	seconds := flag.Float64("seconds", 2, "per optimizer, type and number of elements")
	page := flag.String("update", "", "the page to put the table in, between its marks")
	flag.Parse()
	var all []int
	for _, text := range strings.Split(*sizes, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			log.Fatalf("%q is not a number of elements", text)
		}
		all = append(all, n)
	}
	var text strings.Builder
	if err := table(io.MultiWriter(os.Stdout, &text), all, time.Duration(*seconds*float64(time.Second))); err != nil {
		log.Fatal(err)
	}
	if *page != "" {
		if err := update(*page, text.String()); err != nil {
			log.Fatal(err)
		}
	}
}

var marks = regexp.MustCompile(`(?s)(<!-- benchmarks/go -update \S+ -->\n).*?(<!-- end -->)`)

func update(page, text string) error {
	old, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	if !marks.Match(old) {
		return fmt.Errorf("%s: no %s", page, marks)
	}
	return os.WriteFile(page, marks.ReplaceAll(old, []byte("${1}"+text+"${2}")), 0o644)
}

// A step function takes the given number of steps.
type step func(times int) error

// table prints a row per optimizer, type, size and number of workers.
func table(out io.Writer, sizes []int, budget time.Duration) error {
	fmt.Fprintf(out, "%s/%s, %d CPUs, %s.\n\n", runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), runtime.Version())
	fmt.Fprintln(out, "| optimizer | type | elements | workers | µs per step | speedup over a plain loop | over gonum |")
	fmt.Fprintln(out, "|---|---|--:|--:|--:|--:|--:|")
	for _, n := range sizes {
		for _, name := range []string{"SGD", "AdamW"} {
			if err := rows[float32](out, name, n, budget); err != nil {
				return err
			}
			if err := rows[float64](out, name, n, budget); err != nil {
				return err
			}
		}
		var steps []step
		for _, method := range []optimize.Method{lbfgs(1), lbfgs(2), &optimize.LBFGS{Store: history, GradStopThreshold: math.NaN()}} {
			steps = append(steps, minimize(n, method))
		}
		best, err := interleaved(steps, n, budget)
		if err != nil {
			return err
		}
		for i, seconds := range best[:2] {
			fmt.Fprintf(out, "| LBFGS | float64 | %d | %d | %.1f | | %.2f |\n", n, i+1, seconds*1e6, best[2]/seconds)
		}
	}
	return nil
}

// history is the history size of L-BFGS, and iterations the number of iterations per run.
const history, iterations = 5, 20

func lbfgs(workers int) *gonumopt.LBFGS {
	return &gonumopt.LBFGS{
		LBFGSOptions: goptim.LBFGSOptions{StrongWolfe: true, HistorySize: history}, Workers: workers, GradStopThreshold: math.NaN(),
	}
}

// minimize runs iterations of a method, with its line search, on a quadratic function. Evaluations are included.
func minimize(n int, method optimize.Method) step {
	start := make([]float64, n)
	problem := gonumopt.Problem(func(x, grad []float64) (loss float64) {
		grad = grad[:len(x)]
		for i, v := range x {
			wall := 1 + float64(i%97)
			grad[i] = wall * (v - 1)
			loss += grad[i] * (v - 1) / 2
		}
		return loss
	})
	return func(times int) error {
		for done := 0; done < times; done += iterations {
			want := min(times-done, iterations)
			result, err := optimize.Minimize(problem, start, gonumopt.Steps(want), method)
			if err != nil {
				return err
			}
			if result.MajorIterations < want {
				return fmt.Errorf("%T: %v after %d iterations", method, result.Status, result.MajorIterations)
			}
		}
		return nil
	}
}

func rows[T goptim.Float](out io.Writer, name string, n int, budget time.Duration) error {
	var steps []step
	for workers := 1; workers <= 2; workers++ {
		s, err := ours[T](name, n, workers)
		if err != nil {
			return err
		}
		steps = append(steps, s)
	}
	steps = append(steps, plain[T](name, n))
	if _, wide := any(T(0)).(float64); wide && name == "SGD" {
		steps = append(steps, gradientDescent(n))
	}
	best, err := interleaved(steps, n, budget)
	if err != nil {
		return err
	}
	for i, seconds := range best[:2] {
		gonums := ""
		if len(best) > 3 {
			gonums = fmt.Sprintf("%.2f", best[3]/seconds)
		}
		fmt.Fprintf(out, "| %s | %T | %d | %d | %.1f | %.2f | %s |\n", name, T(0), n, i+1, seconds*1e6, best[2]/seconds, gonums)
	}
	return nil
}

// interleaved returns the seconds per step of the best round of each function.
func interleaved(steps []step, n int, budget time.Duration) ([]float64, error) {
	times := max(2, 1_000_000/n) // so that a round takes much longer than reading the clock
	best := make([]float64, len(steps))
	for i := range best {
		best[i] = math.Inf(1)
	}
	for begin := time.Now(); time.Since(begin) < budget || math.IsInf(best[0], 1); {
		for i, s := range steps {
			start := time.Now()
			if err := s(times); err != nil {
				return nil, err
			}
			best[i] = min(best[i], time.Since(start).Seconds()/float64(times))
		}
	}
	return best, nil
}

func values[T goptim.Float](n int) (value, grad []T) {
	value, grad = make([]T, n), make([]T, n)
	for i := range value {
		value[i], grad[i] = T(i%13), T(i%7)-3
	}
	return value, grad
}

func ours[T goptim.Float](name string, n, workers int) (step, error) {
	value, grad := values[T](n)
	params := []*goptim.Param[T]{{Value: value, Grad: grad}}
	var opt goptim.Optimizer
	var err error
	switch name {
	case "SGD":
		var o *goptim.SGD[T]
		if o, err = goptim.NewSGD(params, goptim.SGDOptions{}); err == nil {
			o.Workers = workers
		}
		opt = o
	case "AdamW":
		var o *goptim.Adam[T]
		if o, err = goptim.NewAdamW(params, goptim.AdamOptions{WeightDecay: 0.01}); err == nil {
			o.Workers = workers
		}
		opt = o
	}
	return func(times int) error {
		for range times {
			if err := opt.Step(); err != nil {
				return err
			}
		}
		return nil
	}, err
}

// plain returns the loop that a program would have without goptim.
func plain[T goptim.Float](name string, n int) step {
	value, grad := values[T](n)
	m, v := make([]T, n), make([]T, n)
	t := 0.0
	return func(times int) error {
		value, m, v := value[:len(grad)], m[:len(grad)], v[:len(grad)] // eliminates bounds checks
		for range times {
			t++
			if name == "SGD" {
				for i, g := range grad {
					value[i] -= 1e-3 * g
				}
				continue
			}
			rate, root := T(1e-3/(1-math.Pow(0.9, t))), T(math.Sqrt(1-math.Pow(0.999, t)))
			for i, g := range grad {
				value[i] *= 1 - 1e-3*0.01
				m[i] += 0.1 * (g - m[i])
				v[i] = 0.999*v[i] + 0.001*g*g
				value[i] -= rate * m[i] / (T(math.Sqrt(float64(v[i])))/root + 1e-8)
			}
		}
		return nil
	}
}

// gradientDescent returns gonum's method with a constant step size. The copies and checks of Minimize are included.
func gradientDescent(n int) step {
	x, grad := values[float64](n)
	problem := optimize.Problem{Func: func([]float64) float64 { return 0 }, Grad: func(g, _ []float64) { copy(g, grad) }}
	return func(times int) error {
		method := &optimize.GradientDescent{
			StepSizer: &optimize.ConstantStepSize{Size: 1e-3}, Linesearcher: constant{}, GradStopThreshold: math.NaN(),
		}
		_, err := optimize.Minimize(problem, x, gonumopt.Steps(times+1), method) // the first one is the starting point
		return err
	}
}

// constant is a line search that accepts every first step.
type constant struct{}

func (constant) Init(_, _, _ float64) optimize.Operation {
	return optimize.FuncEvaluation | optimize.GradEvaluation
}

func (constant) Iterate(_, _ float64) (optimize.Operation, float64, error) {
	return optimize.MajorIteration, 1e-3, nil
}
