package goptim_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/goptim/goptim/goptim"
)

// TestParametersThatShareMemory checks that parameters that share memory are stepped in order, as on one thread. The
// first one's value is the second one's gradient and overlaps half of the third one's value.
func TestParametersThatShareMemory(t *testing.T) {
	const n = 700_000
	for name, build := range kinds[float32](true) {
		t.Run(name, func(t *testing.T) {
			run := func(workers int) (values [][]float32) {
				memory := params[float32](n+n/2, n, n/2)
				a := &goptim.Param[float32]{Value: memory[0].Value[:n], Grad: memory[0].Grad[:n]}
				b := &goptim.Param[float32]{Value: memory[1].Value, Grad: a.Value}
				c := &goptim.Param[float32]{Value: memory[0].Value[n/2:][:n], Grad: memory[1].Grad}
				opt, err := build([]*goptim.Param[float32]{a, b, c})
				require.NoError(t, err)
				setWorkers(opt, workers)
				for range 3 {
					require.NoError(t, opt.Step())
				}
				return [][]float32{memory[0].Value, memory[1].Value}
			}
			expected := run(1)
			for range 3 {
				for i, values := range run(4) {
					requireEqual(t, expected[i], values, "%d", i)
				}
			}
		})
	}
}

// TestGradientThatIsTheValue checks that a gradient that shares memory with its value is rejected. Torch's operations run
// one after the other and would read what earlier ones have written.
func TestGradientThatIsTheValue(t *testing.T) {
	memory := []float32{1, 2, 3, 4, 5, 6, 7, 8, 9}
	build := kinds[float32](true)
	build["Muon"] = func(p []*goptim.Param[float32]) (stepper, error) {
		p[0].Shape = []int{2, 4}
		return goptim.NewMuon(p, goptim.MuonOptions{})
	}
	for name, build := range build {
		for _, grad := range [][]float32{memory[:8], memory[1:]} {
			opt, err := build([]*goptim.Param[float32]{{Name: "w", Value: memory[:8], Grad: grad}})
			if err == nil { // NewMuon rejects it
				err = opt.Step()
			}
			require.ErrorIs(t, err, goptim.ErrParam, name)
			require.ErrorContains(t, err, "parameter 0 (w): the gradient shares memory with the value")
		}
	}
	p := &goptim.Param[float32]{Value: memory[:8], Grad: memory[1:]}
	lbfgs, err := goptim.NewLBFGS([]*goptim.Param[float32]{p}, goptim.LBFGSOptions{})
	require.NoError(t, err)
	_, err = lbfgs.Step(func() (float64, error) { return 0, nil })
	require.ErrorIs(t, err, goptim.ErrParam)
	_, err = goptim.NewSparseSGD([]*goptim.SparseParam[float32]{{Value: memory, Width: 3, Indices: []int64{1}, Grad: memory[3:6]}}, goptim.SGDOptions{})
	require.ErrorIs(t, err, goptim.ErrParam)
	assert.Equal(t, []float32{1, 2, 3, 4, 5, 6, 7, 8, 9}, memory)
}

// TestScalarErrors checks that a step fails where torch's does, and that a later step continues as if there had been no
// failed one.
func TestScalarErrors(t *testing.T) {
	for name, c := range map[string]struct {
		exception string
		spoil     func(o *goptim.AdamOptions)
	}{
		"lr":           {"RuntimeError", func(o *goptim.AdamOptions) { o.LR = 1e39 }},
		"weight decay": {"RuntimeError", func(o *goptim.AdamOptions) { o.WeightDecay = 1e39 }},
	} {
		t.Run(name, func(t *testing.T) {
			good, bad := params[float32](5, 7), params[float32](5, 7)
			expected, err := goptim.NewAdam(good, goptim.AdamOptions{})
			require.NoError(t, err)
			opt, err := goptim.NewAdam(bad, goptim.AdamOptions{})
			require.NoError(t, err)
			other, err := goptim.NewSGD(params[float32](3), goptim.SGDOptions{Momentum: .9})
			require.NoError(t, err)
			groups, err := goptim.NewGroups(other, opt)
			require.NoError(t, err)
			for range 3 {
				before, options := encoded(t, groups), opt.AdamOptions
				c.spoil(&opt.AdamOptions)
				for _, err := range []error{opt.Check(), opt.Step(), groups.Check(), groups.Step()} {
					var scalar *goptim.ScalarError
					require.ErrorAs(t, err, &scalar)
					require.ErrorIs(t, err, goptim.ErrOption)
					assert.Equal(t, c.exception, scalar.Exception)
				}
				opt.AdamOptions = options
				assert.Equal(t, before, encoded(t, groups))
				require.NoError(t, opt.Check())
				require.NoError(t, expected.Step())
				require.NoError(t, opt.Step())
				for i := range good {
					assert.Equal(t, good[i].Value, bad[i].Value)
				}
			}
		})
	}
	d, err := goptim.NewAdagrad(params[float64](3), goptim.AdagradOptions{})
	require.NoError(t, err)
	require.NoError(t, d.Step())
	d.LR, d.LRDecay = 1e300, 1e-300
	require.NoError(t, d.Step(), "float64 holds it")
}
