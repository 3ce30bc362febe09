package goptim_test

import (
	"fmt"
	"log"

	"github.com/goptim/goptim/goptim"
)

// rosenbrockGrad is the gradient of (1-x)² + 100(y-x²)² at v.
func rosenbrockGrad(v, grad []float64) {
	x, y := v[0], v[1]
	grad[0] = -2*(1-x) - 400*x*(y-x*x)
	grad[1] = 200 * (y - x*x)
}

func ExampleNewAdamW() {
	v := &goptim.Param[float64]{Name: "v", Value: []float64{-1.5, 2}, Grad: make([]float64, 2)}
	opt, err := goptim.NewAdamW([]*goptim.Param[float64]{v}, goptim.AdamOptions{LR: 0.02, WeightDecay: 1e-4})
	if err != nil {
		log.Fatal(err)
	}
	for range 5000 {
		rosenbrockGrad(v.Value, v.Grad)
		if err := opt.Step(); err != nil {
			log.Fatal(err)
		}
	}
	fmt.Printf("%.3f\n", v.Value)
	// Output: [1.000 1.000]
}

// A schedule assigns the option that the next step reads.
func ExampleAdam_Step() {
	v := &goptim.Param[float64]{Value: []float64{-1.5, 2}, Grad: make([]float64, 2)}
	opt, err := goptim.NewAdam([]*goptim.Param[float64]{v}, goptim.AdamOptions{LR: 0.1, AMSGrad: true})
	if err != nil {
		log.Fatal(err)
	}
	for i := range 4000 {
		opt.LR = 0.1 / (1 + float64(i)/1000)
		rosenbrockGrad(v.Value, v.Grad)
		if err := opt.Step(); err != nil {
			log.Fatal(err)
		}
	}
	fmt.Printf("%.2f\n", v.Value)
	// Output: [1.00 1.00]
}

func ExampleNewSGD() {
	// Fit y = 2x + 1 by least squares.
	xs, ys := []float32{0, 1, 2, 3}, []float32{1, 3, 5, 7}
	line := &goptim.Param[float32]{Name: "line", Value: make([]float32, 2), Grad: make([]float32, 2)}
	opt, err := goptim.NewSGD([]*goptim.Param[float32]{line}, goptim.SGDOptions{LR: 0.02, Momentum: 0.9, Nesterov: true})
	if err != nil {
		log.Fatal(err)
	}
	for range 300 {
		clear(line.Grad)
		for i, x := range xs {
			residual := line.Value[0]*x + line.Value[1] - ys[i]
			line.Grad[0] += residual * x
			line.Grad[1] += residual
		}
		if err := opt.Step(); err != nil {
			log.Fatal(err)
		}
	}
	fmt.Printf("%.2f\n", line.Value)
	// Output: [2.00 1.00]
}
