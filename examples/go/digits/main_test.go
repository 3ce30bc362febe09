package main

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/goptim/goptim/goptim"
)

func TestTrain(t *testing.T) {
	for _, optimizer := range []string{"AdamW", "SGD", "Adagrad"} {
		accuracy, err := train(optimizer, 20, t.Logf)
		require.NoError(t, err)
		assert.Greater(t, accuracy, .94, optimizer)
	}
	_, err := train("Newton", 1, t.Logf)
	require.ErrorContains(t, err, `no optimizer "Newton"`)
}

func TestGradient(t *testing.T) {
	images, err := read()
	require.NoError(t, err)
	require.Len(t, images, 1797)
	assert.Equal(t, 0, images[0].digit)
	weight := &goptim.Param[float32]{Value: make([]float32, classes*pixels), Grad: make([]float32, classes*pixels)}
	bias := &goptim.Param[float32]{Value: make([]float32, classes), Grad: make([]float32, classes)}
	before := gradient(images[:50], weight, bias)
	got := weight.Grad[3*pixels+20]
	const h = .01
	weight.Value[3*pixels+20] += h
	assert.InDelta(t, (gradient(images[:50], weight, bias)-before)/50/h, got, 1e-3)
}
