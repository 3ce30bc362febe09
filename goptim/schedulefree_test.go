package goptim_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/big"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/goptim/goptim/goptim"
	"github.com/goptim/goptim/goptim/internal/safetensors"
)

// modes is a Schedule-Free optimizer.
type modes interface {
	goptim.Optimizer
	Train() error
	Eval() error
}

func scheduleFree[T goptim.Element](momentum float64) map[string]func([]*goptim.Param[T]) (modes, error) {
	betas := [2]float64{momentum, .99}
	return map[string]func([]*goptim.Param[T]) (modes, error){
		"AdamW": func(p []*goptim.Param[T]) (modes, error) {
			return goptim.NewAdamWScheduleFree(p, goptim.AdamWScheduleFreeOptions{LR: .1, Betas: betas})
		},
		"SGD": func(p []*goptim.Param[T]) (modes, error) {
			return goptim.NewSGDScheduleFree(p, goptim.SGDScheduleFreeOptions{LR: .1, Momentum: momentum})
		},
		"RAdam": func(p []*goptim.Param[T]) (modes, error) {
			return goptim.NewRAdamScheduleFree(p, goptim.RAdamScheduleFreeOptions{LR: .1, Betas: betas})
		},
	}
}

// TestScheduleFreeModes compares the values after Train and Eval with torch's lerp of the values before and z, for weights in both of
// its branches. Values of 16 bits are rounded once.
func TestScheduleFreeModes(t *testing.T) {
	for _, momentum := range []float64{.9, .3} {
		t.Run(fmt.Sprint(momentum), func(t *testing.T) {
			testModes(t, momentum, func(x float64) float32 { return float32(x) }, func(x float32) float64 { return float64(x) }, lerp32)
			testModes(t, momentum, func(x float64) float64 { return x }, func(x float64) float64 { return x }, lerp64)
			testModes(t, momentum, func(x float64) goptim.BFloat16 { return goptim.BFloat16FromFloat32(float32(x)) },
				func(x goptim.BFloat16) float64 { return float64(x.Float32()) }, lerp32)
			testModes(t, momentum, func(x float64) goptim.Float16 { return goptim.Float16FromFloat32(float32(x)) },
				func(x goptim.Float16) float64 { return float64(x.Float32()) }, lerp32)
		})
	}
}

func testModes[T goptim.Element](
	t *testing.T, momentum float64, element func(float64) T, number func(T) float64, lerp func(x, end, weight float64) float64,
) {
	for name, build := range scheduleFree[T](momentum) {
		p := &goptim.Param[T]{Value: make([]T, 37), Grad: make([]T, 37)}
		unused := &goptim.Param[T]{Value: []T{element(3)}}
		for i := range p.Value {
			p.Value[i] = element(math.Sin(float64(i)))
		}
		opt, err := build([]*goptim.Param[T]{p, unused})
		require.NoError(t, err)
		require.NoError(t, opt.Eval()) // without an effect, as it is in eval mode
		require.ErrorIs(t, opt.Step(), goptim.ErrOption)
		require.NoError(t, opt.Train())
		for step := range 9 {
			for i := range p.Grad {
				p.Grad[i] = element(math.Cos(float64(7*i + step)))
			}
			require.NoError(t, opt.Step())
		}
		z := zOf[T](t, opt)
		switched := func(weight float64, to func() error, what string) {
			expected := slices.Clone(p.Value)
			for i := range expected {
				expected[i] = element(lerp(number(p.Value[i]), number(z[i]), weight))
			}
			require.NotEqual(t, expected, p.Value)
			require.NoError(t, to())
			requireEqual(t, expected, p.Value, "%T: %s: %s", p.Value, name, what)
			require.NoError(t, to())
			requireEqual(t, expected, p.Value, "%T: %s: %s, again", p.Value, name, what)
			requireEqual(t, z, zOf[T](t, opt), "%T: %s: z after %s", p.Value, name, what)
		}
		switched(1-1/momentum, opt.Eval, "Eval")
		require.ErrorIs(t, opt.Step(), goptim.ErrOption)
		switched(1-momentum, opt.Train, "Train")
		require.NoError(t, opt.Step())
		require.Equal(t, []T{element(3)}, unused.Value)
	}
}

// zOf returns the state z of the first parameter.
func zOf[T goptim.Element](t *testing.T, opt goptim.Optimizer) []T {
	var b bytes.Buffer
	require.NoError(t, goptim.WriteState(&b, opt))
	f, err := safetensors.Parse(b.Bytes())
	require.NoError(t, err)
	for _, tensor := range f.Tensors {
		if tensor.Name == "state.0.z" {
			z := make([]T, tensor.Shape[0])
			_, err := binary.Decode(tensor.Data, binary.LittleEndian, z)
			require.NoError(t, err)
			return z
		}
	}
	require.Fail(t, "no state z")
	return nil
}

// lerp64 and lerp32 are torch's lerp, which starts from x if the weight is below 0.5, and else from end.
func lerp64(x, end, weight float64) float64 {
	if math.Abs(weight) < .5 {
		return math.FMA(weight, end-x, x)
	}
	return math.FMA(weight-1, end-x, end)
}

func lerp32(x, end, weight float64) float64 {
	w, difference, start := float32(weight), float32(end)-float32(x), x
	if math.Abs(float64(w)) >= .5 {
		w, start = w-1, end
	}
	sum := new(big.Float).SetPrec(1000)
	sum.Mul(big.NewFloat(float64(w)), sum.SetFloat64(float64(difference)))
	sum.Add(sum, big.NewFloat(start))
	fused, _ := sum.Float32()
	return float64(fused)
}
