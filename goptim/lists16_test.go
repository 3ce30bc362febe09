package goptim_test

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/goptim/goptim/goptim"
)

// TestListsOf16Bits compares operations on lists of 16-bit tensors with plain loops, which round as torch does. tests/test_half_phase.py
// compares the same operations with torch.
func TestListsOf16Bits(t *testing.T) {
	t.Run("bfloat16", func(t *testing.T) { testListsOf16Bits(t, goptim.BFloat16FromFloat32, goptim.BFloat16.Float32) })
	t.Run("float16", func(t *testing.T) { testListsOf16Bits(t, goptim.Float16FromFloat32, goptim.Float16.Float32) })
}

func testListsOf16Bits[T goptim.BFloat16 | goptim.Float16](t *testing.T, narrow func(float32) T, widen func(T) float32) {
	round := func(x float32) float32 { return widen(narrow(x)) }
	tensors := func() (params, averages []*goptim.Param[T]) {
		for i, n := range []int{0, 1, 3, 31, 32, 33, 1003, 70001} {
			p, a := &goptim.Param[T]{Value: make([]T, n), Grad: make([]T, n)}, &goptim.Param[T]{Value: make([]T, n)}
			for k := range n {
				p.Value[k] = narrow(float32((k*31+i)%1013)/500 - 1)
				p.Grad[k] = narrow(float32((k*17+i)%977)/300 - 1.5)
				a.Value[k] = narrow(float32((k*7+i)%499)/200 - 1.2)
			}
			params, averages = append(params, p), append(averages, a)
		}
		return params, append(averages, nil)[:len(params)]
	}
	// For each operation, what it does, and an element that it writes after what is read and the element before it.
	const decay, tau, limit = .9, .005, .37
	// A product of 16-bit numbers is exact in float32, and FMA is exact in float64, if its sum has no more than 53 bits.
	fma := func(a, b, c float32) float32 { return float32(float64(a)*float64(b) + float64(c)) }
	averages := map[string]struct {
		do   func(averages, params []*goptim.Param[T]) error
		want func(a, p float32) float32
	}{
		"lerp": {
			func(a, p []*goptim.Param[T]) error {
				return goptim.EMA(a, p, goptim.EMAOptions{Decay: decay, Workers: 2})
			},
			func(a, p float32) float32 { return fma(float32(1-decay), p-a, a) },
		},
		"end point": {
			func(a, p []*goptim.Param[T]) error {
				return goptim.EMA(a, p, goptim.EMAOptions{Decay: .25, Workers: 2})
			},
			func(a, p float32) float32 { return fma(-.25, p-a, p) },
		},
		"mul_add": {
			func(a, p []*goptim.Param[T]) error {
				return goptim.EMA(a, p, goptim.EMAOptions{Decay: decay, Form: goptim.EMAMulAdd})
			},
			func(a, p float32) float32 { return round(a*float32(decay)) + round(p*float32(1-decay)) },
		},
		"polyak": {
			func(a, p []*goptim.Param[T]) error { return goptim.PolyakUpdate(a, p, goptim.PolyakOptions{Tau: tau}) },
			func(a, p float32) float32 { return fma(round(tau), p, round(a*float32(1-tau))) },
		},
		"swa": {
			func(a, p []*goptim.Param[T]) error { return goptim.SWA(a, p, goptim.SWAOptions{Averaged: 999}) },
			func(a, p float32) float32 { return a + round(round(p-a)/1000) },
		},
		"first": {
			func(a, p []*goptim.Param[T]) error { return goptim.SWA(a, p, goptim.SWAOptions{}) },
			func(_, p float32) float32 { return p },
		},
	}
	for name, c := range averages {
		params, averages := tensors()
		_, before := tensors()
		require.NoError(t, c.do(averages, params))
		for i, p := range params {
			for k := range p.Value {
				want := narrow(c.want(widen(before[i].Value[k]), widen(p.Value[k])))
				require.Equal(t, want, averages[i].Value[k], "%s, tensor %d, element %d", name, i, k)
			}
		}
		requireNoAllocations(t, name, func() error { return c.do(averages, params) })
	}

	for _, float32s := range []bool{false, true} {
		params, _ := tensors()
		before, _ := tensors()
		exact := 0.0
		for _, p := range before {
			for _, g := range p.Grad {
				exact += float64(widen(g)) * float64(widen(g))
			}
		}
		o := goptim.ClipGradNormOptions{MaxNorm: limit, Widen: float32s}
		total, err := goptim.GradNorm(params, goptim.GradNormOptions{Widen: float32s, Workers: 3})
		require.NoError(t, err)
		norm, err := goptim.ClipGradNorm(params, o)
		require.NoError(t, err)
		require.Equal(t, total, norm)
		require.InEpsilon(t, math.Sqrt(exact), widen(norm), 1./128)
		coefficient := float32(limit / math.Sqrt(exact))
		if !float32s {
			coefficient = round(round(1/round(widen(norm)+round(1e-6))) * limit)
		}
		for i, p := range params {
			for k, g := range p.Grad {
				was := widen(before[i].Grad[k])
				if !float32s {
					require.Equal(t, narrow(was*coefficient), g, "tensor %d, element %d", i, k)
				} else if got, want := float64(widen(g)), float64(was*coefficient); math.Abs(got) > 1e-4 {
					require.Less(t, math.Abs(got/want-1), 1./200, "tensor %d, element %d", i, k)
				}
			}
		}
		requireNoAllocations(t, "ClipGradNorm", func() error {
			_, err := goptim.ClipGradNorm(params, o)
			return err
		})
	}

	params, _ := tensors()
	before, _ := tensors()
	require.NoError(t, goptim.ClipGradValue(params, goptim.ClipGradValueOptions{ClipValue: limit}))
	for i, p := range params {
		for k, g := range p.Grad {
			require.Equal(t, narrow(min(max(widen(before[i].Grad[k]), -limit), limit)), g, "tensor %d, element %d", i, k)
		}
	}
	largest, err := goptim.GradNorm(params, goptim.GradNormOptions{NormType: math.Inf(1)})
	require.NoError(t, err)
	require.Equal(t, narrow(limit), largest)
	params[6].Grad[77] = narrow(float32(math.Inf(1)))
	_, err = goptim.ClipGradNorm(params, goptim.ClipGradNormOptions{MaxNorm: 1, ErrorIfNonfinite: true})
	require.ErrorContains(t, err, "parameter 6: the norm of the gradient is +Inf")
	if _, ok := any(params).([]*goptim.Param[goptim.Float16]); ok {
		err = goptim.ClipGradValue(params, goptim.ClipGradValueOptions{ClipValue: 1e5})
		require.ErrorContains(t, err, "100000 cannot be converted to float16 without overflow")
	}
}

func requireNoAllocations(t *testing.T, name string, f func() error) {
	var err error
	n := testing.AllocsPerRun(5, func() { err = f() })
	require.NoError(t, err)
	if !goptim.Detector { // it drops what is pooled
		require.Zero(t, n, name)
	}
}
