// Leastsquares fits a decay, a·exp(-b·t) + c, to measurements with gonum's Minimize: with goptim's L-BFGS and gonum's methods:
//
//	go run ./examples/go/leastsquares
package main

import (
	"fmt"
	"log"
	"math"
	"math/rand/v2"
	"os"
	"text/tabwriter"

	"gonum.org/v1/gonum/optimize"

	"github.com/goptim/goptim/goptim"
	"github.com/goptim/goptim/goptim/gonumopt"
)

// A measurement is a value y at a time t.
type measurement struct{ t, y float64 }

// truth is a, b and c.
var truth = []float64{2.5, 1.3, 0.5}

func decay(x []float64, t float64) float64 { return x[0]*math.Exp(-x[1]*t) + x[2] }

// measure returns noisy measurements of the truth.
func measure(n int) []measurement {
	random := rand.New(rand.NewPCG(1, 2))
	all := make([]measurement, n)
	for i := range all {
		t := 5 * float64(i) / float64(n)
		all[i] = measurement{t, decay(truth, t) + 0.05*random.NormFloat64()}
	}
	return all
}

// loss is half the sum of squared residuals, with its gradient.
func loss(data []measurement) func(x, grad []float64) float64 {
	return func(x, grad []float64) (sum float64) {
		clear(grad)
		for _, m := range data {
			residual, e := decay(x, m.t)-m.y, math.Exp(-x[1]*m.t)
			sum += residual * residual / 2
			grad[0] += residual * e
			grad[1] -= residual * x[0] * m.t * e
			grad[2] += residual
		}
		return sum
	}
}

func fit(method optimize.Method) (*optimize.Result, error) {
	return optimize.Minimize(gonumopt.Problem(loss(measure(500))), []float64{1, 0.1, 0}, &optimize.Settings{GradientThreshold: 1e-8}, method)
}

func main() {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "method\ta, b, c\tevaluations\tended by")
	for _, m := range []struct {
		name   string
		method optimize.Method
	}{
		{"goptim's LBFGS", &gonumopt.LBFGS{LBFGSOptions: goptim.LBFGSOptions{StrongWolfe: true}}},
		{"gonum's LBFGS", &optimize.LBFGS{}},
		{"gonum's BFGS", &optimize.BFGS{}},
		{"gonum's GradientDescent", &optimize.GradientDescent{}},
	} {
		result, err := fit(m.method)
		how := fmt.Sprint(result.Status)
		if err != nil { // gonum's line searches fail if rounding prevents an improvement
			how = err.Error()
		}
		fmt.Fprintf(w, "%s\t%.4f\t%d\t%s\n", m.name, result.X, result.GradEvaluations, how)
	}
	if err := w.Flush(); err != nil {
		log.Fatal(err)
	}
}
