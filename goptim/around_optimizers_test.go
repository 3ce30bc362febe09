package goptim_test

import (
	"bytes"
	"errors"
	"fmt"
	"log"
	"math"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/goptim/goptim/goptim"
)

// paramsAt returns parameters of float64 with gradients for a step, of which the last one has none.
func paramsAt(sizes ...int) (all []*goptim.Param[float64]) {
	for i, n := range sizes {
		p := &goptim.Param[float64]{Name: fmt.Sprint("p", i), Value: make([]float64, n), Grad: make([]float64, n)}
		for k := range p.Value {
			p.Value[k] = math.Sin(float64(7*i + k))
		}
		all = append(all, p)
	}
	return all
}

func setGrads(params []*goptim.Param[float64], step int) {
	for i, p := range params {
		for k := range p.Grad {
			p.Grad[k] = math.Cos(float64(3*i + 5*k + 11*step))
		}
	}
}

func adamw(t *testing.T, params []*goptim.Param[float64]) goptim.Optimizer {
	opt, err := goptim.NewAdamW(params, goptim.AdamOptions{LR: .1})
	require.NoError(t, err)
	return opt
}

// TestLookahead compares with the same operations on slices.
func TestLookahead(t *testing.T) {
	params, expected := paramsAt(37, 1, 1003), paramsAt(37, 1, 1003)
	opt, err := goptim.NewLookahead(adamw(t, params), goptim.LookaheadOptions{Alpha: .3, K: 3})
	require.NoError(t, err)
	base := adamw(t, expected)
	slow := make([][]float64, len(expected))
	for step := 1; step <= 9; step++ {
		setGrads(params, step)
		setGrads(expected, step)
		if step == 6 {
			params[1].Grad, expected[1].Grad = nil, nil
		}
		require.NoError(t, opt.Step())
		require.NoError(t, base.Step())
		for i, p := range expected {
			if step%3 != 0 || p.Grad == nil {
				continue
			}
			if slow[i] == nil {
				slow[i] = slices.Clone(p.Value)
			}
			for k, x := range p.Value {
				slow[i][k] = math.FMA(.3, x-slow[i][k], slow[i][k])
				p.Value[k] = slow[i][k]
			}
		}
		for i := range params {
			requireEqual(t, expected[i].Value, params[i].Value, "step %d: parameter %d", step, i)
		}
	}
	require.Equal(t, 9, opt.Steps)
}

// TestLookaheadStateGoesOn continues with a new optimizer after every step.
func TestLookaheadStateGoesOn(t *testing.T) {
	run := func(save bool) []*goptim.Param[float64] {
		params := paramsAt(37, 5)
		made := func(k int) *goptim.Lookahead {
			groups, err := goptim.NewGroups(adamw(t, params[:1]), adamw(t, params[1:]))
			require.NoError(t, err)
			opt, err := goptim.NewLookahead(groups, goptim.LookaheadOptions{Alpha: .3, K: k})
			require.NoError(t, err)
			return opt
		}
		opt := made(2)
		for step := range 7 {
			setGrads(params, step)
			require.NoError(t, opt.Step())
			if !save {
				continue
			}
			next := made(5)
			if step%2 == 0 {
				data, err := opt.MarshalBinary()
				require.NoError(t, err)
				require.NoError(t, next.UnmarshalBinary(data))
			} else {
				var file bytes.Buffer
				require.NoError(t, goptim.WriteState(&file, opt))
				require.NoError(t, goptim.ReadState(&file, next))
			}
			require.Equal(t, opt.LookaheadOptions, next.LookaheadOptions)
			opt = next
		}
		return params
	}
	expected, params := run(false), run(true)
	for i := range params {
		requireEqual(t, expected[i].Value, params[i].Value, "parameter %d", i)
	}
}

// TestLookaheadRefuses checks that nothing changes after an error.
func TestLookaheadRefuses(t *testing.T) {
	params := paramsAt(3)
	for _, o := range []goptim.LookaheadOptions{{Alpha: 1.5}, {Alpha: -1}, {K: -1}, {Steps: -1}, {Alpha: math.NaN()}} {
		_, err := goptim.NewLookahead(adamw(t, params), o)
		require.ErrorIs(t, err, goptim.ErrOption)
	}
	_, err := goptim.NewLookahead(nil, goptim.LookaheadOptions{})
	require.ErrorIs(t, err, goptim.ErrParam)
	sparse, err := goptim.NewSparseAdam([]*goptim.SparseParam[float64]{{Value: make([]float64, 6), Width: 2}}, goptim.SparseAdamOptions{})
	require.NoError(t, err)
	_, err = goptim.NewLookahead(sparse, goptim.LookaheadOptions{})
	require.ErrorContains(t, err, "parameter 0 of group 0 has sparse gradients, expected dense ones")

	half := []*goptim.Param[goptim.BFloat16]{{Value: make([]goptim.BFloat16, 3), Grad: make([]goptim.BFloat16, 3)}}
	sgd, err := goptim.NewSGD(half, goptim.SGDOptions{})
	require.NoError(t, err)
	sgd.MasterWeights = true
	opt, err := goptim.NewLookahead(sgd, goptim.LookaheadOptions{K: 1})
	require.NoError(t, err)
	require.ErrorContains(t, opt.Step(), "group 0 has MasterWeights or RoundKahan, expected neither")
	require.Zero(t, opt.Steps)
	require.ErrorIs(t, new(goptim.Lookahead).Step(), goptim.ErrParam)

	over, err := goptim.NewLookahead(adamw(t, params), goptim.LookaheadOptions{K: 1})
	require.NoError(t, err)
	require.NoError(t, over.Step())
	data, err := over.MarshalBinary()
	require.NoError(t, err)
	require.ErrorIs(t, over.UnmarshalBinary(data[:len(data)-1]), goptim.ErrState)
	params[0].Value, params[0].Grad = params[0].Value[:2], params[0].Grad[:2]
	require.ErrorContains(t, over.Step(), "parameter 0 has 2 elements, expected 3 as before")
}

// samByHand returns the perturbed values.
func samByHand(t *testing.T, params []*goptim.Param[float64], o goptim.SAMOptions) (all [][]float64) {
	var squares float32
	for _, p := range params {
		grad := slices.Clone(p.Grad)
		for k := range grad {
			if o.Adaptive {
				grad[k] *= math.Abs(p.Value[k])
			}
		}
		norm, err := goptim.GradNorm([]*goptim.Param[float64]{{Value: grad, Grad: grad}}, goptim.GradNormOptions{})
		require.NoError(t, err)
		squares += float32(norm) * float32(norm)
	}
	scale := float64(1 / (float32(math.Sqrt(float64(squares))) + float32(o.PerturbEps)) * float32(o.Rho))
	for _, p := range params {
		moved := slices.Clone(p.Value)
		for k, x := range p.Value {
			factor := 1.
			if o.Adaptive {
				factor = float64(x * x)
			}
			moved[k] = x + float64(float64(factor*p.Grad[k])*scale)
		}
		all = append(all, moved)
	}
	return all
}

func TestSAM(t *testing.T) {
	for _, adaptive := range []bool{false, true} {
		params, expected := paramsAt(37, 1, 1003), paramsAt(37, 1, 1003)
		opt, err := goptim.NewSAM(adamw(t, params), goptim.SAMOptions{Rho: .3, Adaptive: adaptive})
		require.NoError(t, err)
		base := adamw(t, expected)
		for step := range 5 {
			setGrads(expected, 2*step)
			perturbed := samByHand(t, expected, opt.SAMOptions)
			calls := 0
			require.NoError(t, opt.Step(func() error {
				if calls == 1 {
					for i, p := range params {
						requireEqual(t, perturbed[i], p.Value, "step %d: perturbed parameter %d", step, i)
					}
				}
				setGrads(params, 2*step+calls)
				calls++
				return nil
			}))
			setGrads(expected, 2*step+1)
			require.NoError(t, base.Step())
			for i := range params {
				requireEqual(t, expected[i].Value, params[i].Value, "step %d: parameter %d", step, i)
			}
		}
	}
}

// TestSAMOfSeveralTypes checks that the norm is over all parameters, and that values are restored.
func TestSAMOfSeveralTypes(t *testing.T) {
	wide := []*goptim.Param[float32]{{Value: []float32{1}, Grad: []float32{3}}}
	half := []*goptim.Param[goptim.BFloat16]{{
		Value: []goptim.BFloat16{goptim.BFloat16FromFloat32(1)}, Grad: []goptim.BFloat16{goptim.BFloat16FromFloat32(4)},
	}}
	a, err := goptim.NewSGD(wide, goptim.SGDOptions{LR: 1})
	require.NoError(t, err)
	b, err := goptim.NewSGD(half, goptim.SGDOptions{LR: 1})
	require.NoError(t, err)
	groups, err := goptim.NewGroups(a, b)
	require.NoError(t, err)
	for _, adaptive := range []bool{false, true} {
		opt, err := goptim.NewSAM(groups, goptim.SAMOptions{Rho: 5, Adaptive: adaptive})
		require.NoError(t, err)
		require.NoError(t, opt.FirstStep())
		require.Equal(t, float32(4), wide[0].Value[0])
		require.Equal(t, float32(5), half[0].Value[0].Float32())
		wide[0].Grad[0], half[0].Grad[0] = 0, 0
		require.NoError(t, opt.SecondStep())
		require.Equal(t, float32(1), wide[0].Value[0])
		require.Equal(t, float32(1), half[0].Value[0].Float32())
		wide[0].Grad[0], half[0].Grad[0] = 3, goptim.BFloat16FromFloat32(4)
	}
}

func TestSAMRefuses(t *testing.T) {
	params := paramsAt(3)
	for _, o := range []goptim.SAMOptions{{Rho: -1}, {PerturbEps: -1}, {Order: 7}} {
		_, err := goptim.NewSAM(adamw(t, params), o)
		require.ErrorIs(t, err, goptim.ErrOption)
	}
	_, err := goptim.NewSAM(nil, goptim.SAMOptions{})
	require.ErrorIs(t, err, goptim.ErrParam)
	require.ErrorIs(t, new(goptim.SAM).FirstStep(), goptim.ErrParam)

	opt, err := goptim.NewSAM(adamw(t, params), goptim.SAMOptions{})
	require.NoError(t, err)
	before := slices.Clone(params[0].Value)
	failed := errors.New("no gradient")
	for after := range 2 {
		calls := 0
		require.ErrorIs(t, opt.Step(func() error {
			if calls++; calls > after {
				return failed
			}
			setGrads(params, 1)
			return nil
		}), failed)
		require.Equal(t, before, params[0].Value)
	}
}

func ExampleNewLookahead() {
	v, params := valleyFrom(-1.5, 2)
	base, err := goptim.NewAdam(params, goptim.AdamOptions{LR: 0.01})
	if err != nil {
		log.Fatal(err)
	}
	opt, err := goptim.NewLookahead(base, goptim.LookaheadOptions{})
	if err != nil {
		log.Fatal(err)
	}
	descend(v, opt, 6000)
	// Output: [1.00 1.00]
}

func ExampleNewSAM() {
	v, params := valleyFrom(-1.5, 2)
	base, err := goptim.NewAdam(params, goptim.AdamOptions{LR: 0.01})
	if err != nil {
		log.Fatal(err)
	}
	opt, err := goptim.NewSAM(base, goptim.SAMOptions{Rho: 1e-3})
	if err != nil {
		log.Fatal(err)
	}
	for range 6000 {
		err := opt.Step(func() error {
			rosenbrockGrad(v.Value, v.Grad)
			return nil
		})
		if err != nil {
			log.Fatal(err)
		}
	}
	fmt.Printf("%.1f\n", v.Value)
	// Output: [1.0 1.0]
}
