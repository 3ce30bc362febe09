package goptim_test

import (
	"fmt"
	"math"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/goptim/goptim/goptim"
)

func TestBFloat16(t *testing.T) {
	testOf16Bits(t, goptim.BFloat16FromFloat32, goptim.BFloat16.Float32)
	assert.Equal(t, goptim.BFloat16(0x3f80), goptim.BFloat16FromFloat32(1))
	assert.Equal(t, float32(1.0078125), goptim.BFloat16(0x3f81).Float32())
}

func TestFloat16(t *testing.T) {
	testOf16Bits(t, goptim.Float16FromFloat32, goptim.Float16.Float32)
	assert.Equal(t, goptim.Float16(0x3c00), goptim.Float16FromFloat32(1))
	assert.Equal(t, float32(0x1p-24), goptim.Float16(1).Float32())
}

// float32States are the optimizers whose states are float32 for 16-bit parameters too.
var float32States = map[string]bool{"BitsandbytesAdEMAMix": true, "BitsandbytesLion": true}

// testOf16Bits compares every elementwise optimizer with itself on float32 copies, whose parameters and states are rounded after
// each step.
func testOf16Bits[T goptim.Element](t *testing.T, narrow func(float32) T, widen func(T) float32) {
	round := func(s []float32) {
		for i := range s {
			s[i] = widen(narrow(s[i]))
		}
	}
	oracles := constructors[float32]()
	for k, c := range constructors[T]() {
		if shapesOf16Bits[c.name] != nil {
			continue // not elementwise: see TestKindsOf16Bits
		}
		all := []any{c.usual, c.unusual}
		if c.name == "Adam" {
			all = append(all, goptim.AdamOptions{Betas: [2]float64{.4, .8}}) // whose lerp starts from the end
		}
		for _, options := range all {
			if o, ok := options.(goptim.RpropOptions); ok {
				o.LR = 1. / 128 // the initial value of a state, which a new float32 state does not round
				options = o
			}
			sizes := []int{1, 31, 64, 0, 1111}
			if c.name == "AdamW" && !testing.Short() {
				sizes = append(sizes, 1<<19+77) // several threads
			}
			var params []*goptim.Param[T]
			var copies []*goptim.Param[float32]
			for _, n := range sizes {
				params = append(params, &goptim.Param[T]{Value: make([]T, n), Grad: make([]T, n)})
				copies = append(copies, &goptim.Param[float32]{Value: make([]float32, n), Grad: make([]float32, n)})
			}
			opt, err := c.with(params, options)
			require.NoError(t, err)
			oracle, err := oracles[k].with(copies, options)
			require.NoError(t, err)
			for step := range 4 {
				for k, p := range params {
					for i := range p.Value {
						if step == 0 {
							p.Value[i] = narrow(float32(i%977)/300 - 1.5)
							copies[k].Value[i] = widen(p.Value[i])
						}
						p.Grad[i] = narrow(float32((i*31+step*7)%1013)/500 - 1)
						copies[k].Grad[i] = widen(p.Grad[i])
					}
				}
				require.NoError(t, opt.Step())
				require.NoError(t, oracle.Step())
				for _, p := range copies {
					round(p.Value)
				}
				if !float32States[c.name] {
					oracle.(interface{ EachState(func([]float32)) }).EachState(round)
				}
				what := fmt.Sprintf("%s, %+v, step %d", c.name, options, step)
				equal := func(expected []float32, ours []T) {
					for i, x := range expected {
						if y := widen(ours[i]); math.Float32bits(x) != math.Float32bits(y) {
							require.Equal(t, x, y, "%s, element %d of %d", what, i, len(expected))
						}
					}
				}
				for k, p := range params {
					equal(copies[k].Value, p.Value)
				}
				var states [][]float32
				oracle.(interface{ EachState(func([]float32)) }).EachState(func(s []float32) { states = append(states, s) })
				at := 0
				if float32States[c.name] {
					continue
				}
				opt.(interface{ EachState(func([]T)) }).EachState(func(s []T) {
					equal(states[at], s)
					at++
				})
			}
			saved, err := opt.MarshalBinary()
			require.NoError(t, err)
			resumed, err := c.with(params, options)
			require.NoError(t, err)
			require.NoError(t, resumed.UnmarshalBinary(saved))
			again, err := resumed.MarshalBinary()
			require.NoError(t, err)
			assert.Equal(t, saved, again)
		}
	}
}

// TestScalarsOf16BitsAreFloat32 steps with a learning rate that float32 cannot represent.
func TestScalarsOf16BitsAreFloat32(t *testing.T) {
	p := &goptim.Param[goptim.Float16]{Value: make([]goptim.Float16, 1), Grad: make([]goptim.Float16, 1)}
	opt, err := goptim.NewSGD([]*goptim.Param[goptim.Float16]{p}, goptim.SGDOptions{LR: 1e39})
	require.NoError(t, err)
	require.ErrorContains(t, opt.Step(), "cannot be converted to float32")
	opt.LR = 1e38
	require.NoError(t, opt.Step())
}
