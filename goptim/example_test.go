package goptim_test

import (
	"errors"
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

// valleyFrom is a parameter in Rosenbrock's valley, whose lowest point is [1 1].
func valleyFrom(x, y float64) (*goptim.Param[float64], []*goptim.Param[float64]) {
	v := &goptim.Param[float64]{Name: "v", Value: []float64{x, y}, Grad: make([]float64, 2)}
	return v, []*goptim.Param[float64]{v}
}

// descend takes steps there.
func descend(v *goptim.Param[float64], opt goptim.Optimizer, steps int) {
	for range steps {
		rosenbrockGrad(v.Value, v.Grad)
		if err := opt.Step(); err != nil {
			log.Fatal(err)
		}
	}
	fmt.Printf("%.2f\n", v.Value)
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

func ExampleNewStableAdamW() {
	v, params := valleyFrom(-1.5, 2)
	opt, err := goptim.NewStableAdamW(params, goptim.StableAdamWOptions{LR: 0.005, WeightDecay: 1e-4})
	if err != nil {
		log.Fatal(err)
	}
	descend(v, opt, 5000)
	// Output: [1.00 1.00]
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

func ExampleNewAdam() {
	v, params := valleyFrom(-1.5, 2)
	opt, err := goptim.NewAdam(params, goptim.AdamOptions{LR: 0.05})
	if err != nil {
		log.Fatal(err)
	}
	descend(v, opt, 3000)
	// Output: [1.00 1.00]
}

func ExampleNewAMSGrad() {
	v, params := valleyFrom(-1.5, 2)
	opt, err := goptim.NewAMSGrad(params, goptim.AdamOptions{LR: 0.05})
	if err != nil {
		log.Fatal(err)
	}
	descend(v, opt, 5000)
	// Output: [1.00 1.00]
}

func ExampleNewAdagrad() {
	v, params := valleyFrom(-1.5, 2)
	opt, err := goptim.NewAdagrad(params, goptim.AdagradOptions{LR: 0.5})
	if err != nil {
		log.Fatal(err)
	}
	descend(v, opt, 30000)
	// Output: [1.00 1.00]
}

func ExampleNewAdadelta() {
	v, params := valleyFrom(-1.5, 2)
	opt, err := goptim.NewAdadelta(params, goptim.AdadeltaOptions{LR: 0.01})
	if err != nil {
		log.Fatal(err)
	}
	descend(v, opt, 20000)
	// Output: [1.00 1.00]
}

func ExampleNewAdamax() {
	v, params := valleyFrom(-1.5, 2)
	opt, err := goptim.NewAdamax(params, goptim.AdamaxOptions{LR: 0.02})
	if err != nil {
		log.Fatal(err)
	}
	descend(v, opt, 8000)
	// Output: [1.00 1.00]
}

func ExampleNewASGD() {
	v, params := valleyFrom(-1.5, 2)
	opt, err := goptim.NewASGD(params, goptim.ASGDOptions{LR: 1e-3, Lambd: 1e-4})
	if err != nil {
		log.Fatal(err)
	}
	descend(v, opt, 20000)
	// Output: [1.00 1.00]
}

func ExampleNewNAdam() {
	v, params := valleyFrom(-1.5, 2)
	opt, err := goptim.NewNAdam(params, goptim.NAdamOptions{LR: 0.005, MomentumDecay: 4e-3})
	if err != nil {
		log.Fatal(err)
	}
	descend(v, opt, 15000)
	// Output: [1.00 1.00]
}

func ExampleNewRAdam() {
	v, params := valleyFrom(0, 0)
	opt, err := goptim.NewRAdam(params, goptim.RAdamOptions{LR: 0.02})
	if err != nil {
		log.Fatal(err)
	}
	descend(v, opt, 10000)
	// Output: [1.00 1.00]
}

func ExampleNewProdigy() {
	p := &goptim.Param[float64]{Value: []float64{1, -2}, Grad: make([]float64, 2)}
	opt, err := goptim.NewProdigy([]*goptim.Param[float64]{p}, goptim.ProdigyOptions{})
	if err != nil {
		log.Fatal(err)
	}
	for range 200 {
		for i, x := range p.Value {
			p.Grad[i] = 2 * x // of the sum of squares
		}
		if err := opt.Step(); err != nil {
			log.Fatal(err)
		}
	}
	fmt.Printf("%.2f, with the learning rate %.2f after %d steps\n", p.Value, opt.D, opt.K)
	// Output: [-0.00 -0.00], with the learning rate 0.52 after 200 steps
}

func ExampleNewRMSprop() {
	v, params := valleyFrom(-1.5, 2)
	opt, err := goptim.NewRMSprop(params, goptim.RMSpropOptions{LR: 1e-3, Centered: true})
	if err != nil {
		log.Fatal(err)
	}
	descend(v, opt, 10000)
	// Output: [1.00 1.00]
}

func ExampleNewRprop() {
	v, params := valleyFrom(-1.5, 2)
	opt, err := goptim.NewRprop(params, goptim.RpropOptions{})
	if err != nil {
		log.Fatal(err)
	}
	descend(v, opt, 20000)
	// Output: [1.00 1.00]
}

func ExampleNewSparseAdagrad() {
	// Gradients of one row are added up: row 7 has none in the end.
	words := &goptim.SparseParam[float32]{Name: "words", Value: make([]float32, 1000*2), Width: 2}
	opt, err := goptim.NewSparseAdagrad([]*goptim.SparseParam[float32]{words}, goptim.AdagradOptions{LR: 0.5})
	if err != nil {
		log.Fatal(err)
	}
	words.Indices, words.Grad = []int64{7, 3, 7}, []float32{1, 1, -2, -2, -1, -1}
	if err := opt.Step(); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%.1f %.1f\n", words.Value[2*3:2*4], words.Value[2*7:2*8])
	// Output: [0.5 0.5] [0.0 0.0]
}

// Every error wraps ErrOption, ErrParam, ErrState or ErrLineSearch, and says which parameter or option it is about.
func Example_errors() {
	_, err := goptim.NewAdam([]*goptim.Param[float32]{{Name: "w"}}, goptim.AdamOptions{Betas: [2]float64{0.9, 1}})
	fmt.Println(err)
	fmt.Println(errors.Is(err, goptim.ErrOption))

	w := &goptim.Param[float32]{Name: "w", Value: make([]float32, 3), Grad: make([]float32, 2)}
	opt, err := goptim.NewAdam([]*goptim.Param[float32]{w}, goptim.AdamOptions{})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(opt.Step())
	// Output:
	// goptim: Adam: Betas[1] is 1, expected at least 0 and below 1: invalid option
	// true
	// goptim: Adam: parameter 0 (w): the gradient has 2 elements, expected 3: invalid parameter
}

func ExampleGradNorm() {
	params := []*goptim.Param[float32]{
		{Value: make([]float32, 2), Grad: []float32{3, 0}},
		{Value: make([]float32, 1), Grad: []float32{4}},
	}
	norm, err := goptim.GradNorm(params, goptim.GradNormOptions{})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(norm)
	// Output: 5
}

// Clipping is between the computation of the gradients and the step.
func ExampleClipGradNorm() {
	params := []*goptim.Param[float32]{{Value: make([]float32, 2), Grad: []float32{3, -4}}}
	norm, err := goptim.ClipGradNorm(params, goptim.ClipGradNormOptions{MaxNorm: 1})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%v %.2f\n", norm, params[0].Grad)
	// Output: 5 [0.60 -0.80]
}

func ExampleClipGradValue() {
	params := []*goptim.Param[float32]{{Value: make([]float32, 3), Grad: []float32{3, -0.25, -4}}}
	if err := goptim.ClipGradValue(params, goptim.ClipGradValueOptions{ClipValue: 0.5}); err != nil {
		log.Fatal(err)
	}
	fmt.Println(params[0].Grad)
	// Output: [0.5 -0.25 -0.5]
}

func ExampleEMA() {
	weights := &goptim.Param[float64]{Value: []float64{1, 2}}
	average := &goptim.Param[float64]{Value: []float64{1, 2}} // begins as a copy
	for range 2 {
		weights.Value[0] += 4 // an optimizer's step
		err := goptim.EMA([]*goptim.Param[float64]{average}, []*goptim.Param[float64]{weights}, goptim.EMAOptions{Decay: 0.5})
		if err != nil {
			log.Fatal(err)
		}
	}
	fmt.Println(average.Value)
	// Output: [6 2]
}

func ExampleSWA() {
	weights := &goptim.Param[float64]{Value: []float64{0}}
	mean := &goptim.Param[float64]{Value: make([]float64, 1)}
	for i := range 3 {
		weights.Value[0] += 4 // steps of an optimizer
		err := goptim.SWA([]*goptim.Param[float64]{mean}, []*goptim.Param[float64]{weights}, goptim.SWAOptions{Averaged: i})
		if err != nil {
			log.Fatal(err)
		}
	}
	fmt.Println(mean.Value)
	// Output: [8]
}

func ExamplePolyakUpdate() {
	critic := []*goptim.Param[float64]{{Value: []float64{4, 8}}}
	target := []*goptim.Param[float64]{{Value: []float64{0, 8}}}
	if err := goptim.PolyakUpdate(target, critic, goptim.PolyakOptions{Tau: 0.25}); err != nil {
		log.Fatal(err)
	}
	fmt.Println(target[0].Value)
	// Output: [1 8]
}
