package goptim_test

import (
	"bytes"
	"encoding/json"
	"math"
	"os"
	"strconv"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"

	"github.com/goptim/goptim/goptim"
)

// goldenInput has the initial parameter and the gradients of the steps, as hexadecimal digits.
type goldenInput struct {
	Start string
	Grads []string
}

// A goldenFile is testdata/golden.json.
type goldenFile struct {
	Float32, Float64 goldenInput
	Cases            []struct {
		Optimizer        string
		Options          json.RawMessage
		Shape            []int
		Float32, Float64 []string // the parameter after each step
	}
	Lists []struct {
		Operation        string
		Options          map[string]string
		Float32, Float64 []string // the norm, if there is one, and the elements of all tensors
	}
	Norms struct{ Float32, Float64 map[string]string } // by the number of elements
}

func readGolden(t *testing.T) (f goldenFile) {
	text, err := os.ReadFile("testdata/golden.json")
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, &f))
	return f
}

// TestGolden compares the optimizers with testdata/golden.json, torch's results (tests/golden.py).
func TestGolden(t *testing.T) {
	cases := readGolden(t)
	require.NotEmpty(t, cases.Cases)
	for _, c := range cases.Cases {
		var options bytes.Buffer
		require.NoError(t, json.Compact(&options, c.Options))
		name := c.Optimizer + options.String()
		t.Run("float32 "+name, func(t *testing.T) {
			build := golden[float32](t, c.Optimizer, c.Options)
			testGolden(t, build, cases.Float32, c.Shape, c.Float32)
		})
		t.Run("float64 "+name, func(t *testing.T) {
			build := golden[float64](t, c.Optimizer, c.Options)
			testGolden(t, build, cases.Float64, c.Shape, c.Float64)
		})
	}
}

func testGolden[T goptim.Float](t *testing.T, build func([]*goptim.Param[T]) (stepper, error), in goldenInput, shape []int, want []string) {
	p := &goptim.Param[T]{Value: parse[T](t, in.Start), Shape: shape}
	n := len(p.Value)
	if shape != nil {
		n = 1
		for _, size := range shape {
			n *= size
		}
	}
	p.Value = p.Value[:n]
	opt, err := build([]*goptim.Param[T]{p})
	require.NoError(t, err)
	require.Len(t, want, len(in.Grads))
	for step, digits := range want {
		p.Grad = parse[T](t, in.Grads[step])[:n]
		require.NoError(t, opt.Step())
		all := parse[T](t, digits)
		require.Len(t, all, n)
		for i, x := range all {
			same := x == p.Value[i] && math.Signbit(float64(x)) == math.Signbit(float64(p.Value[i]))
			require.True(t, same, "step %d, element %d: %v, expected %v", step+1, i, p.Value[i], x)
		}
	}
}

// parse reads concatenated numbers, given by the hexadecimal digits of their bits.
func parse[T goptim.Float](t *testing.T, digits string) []T {
	size := int(unsafe.Sizeof(T(0)))
	require.Zero(t, len(digits)%(2*size))
	var all []T
	for ; digits != ""; digits = digits[2*size:] {
		u, err := strconv.ParseUint(digits[:2*size], 16, 8*size)
		require.NoError(t, err)
		if size == 4 {
			all = append(all, T(math.Float32frombits(uint32(u))))
		} else {
			all = append(all, T(math.Float64frombits(u)))
		}
	}
	return all
}
