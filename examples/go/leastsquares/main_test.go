package main

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gonum.org/v1/gonum/diff/fd"
	"gonum.org/v1/gonum/optimize"

	"github.com/goptim/goptim/goptim"
	"github.com/goptim/goptim/goptim/gonumopt"
)

func TestFit(t *testing.T) {
	ours, err := fit(&gonumopt.LBFGS{LBFGSOptions: goptim.LBFGSOptions{StrongWolfe: true}})
	require.NoError(t, err)
	assert.InDeltaSlice(t, truth, ours.X, .05)
	gonums, _ := fit(&optimize.BFGS{}) // its line search may fail at the minimum
	assert.InDeltaSlice(t, gonums.X, ours.X, 1e-6)
	main()
}

func TestGradient(t *testing.T) {
	f, at, grad := loss(measure(50)), []float64{2, 1, .3}, make([]float64, 3)
	f(at, grad)
	want := fd.Gradient(nil, func(x []float64) float64 { return f(x, make([]float64, 3)) }, at, nil)
	assert.InDeltaSlice(t, want, grad, 1e-5)
}
