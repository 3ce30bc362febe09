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

// goldenBuilders make an optimizer from torch's arguments, which are JSON.
func goldenBuilders[T goptim.Float](t *testing.T, arguments []byte) map[string]func([]*goptim.Param[T]) (stepper, error) {
	return map[string]func([]*goptim.Param[T]) (stepper, error){
		"SGD": func(p []*goptim.Param[T]) (stepper, error) {
			return goptim.NewSGD(p, decode[goptim.SGDOptions](t, arguments))
		},
		"Adam": func(p []*goptim.Param[T]) (stepper, error) {
			return goptim.NewAdam(p, decode[goptim.AdamOptions](t, arguments))
		},
		"AdamW": func(p []*goptim.Param[T]) (stepper, error) {
			return goptim.NewAdamW(p, decode[goptim.AdamOptions](t, arguments))
		},
		"Adagrad": func(p []*goptim.Param[T]) (stepper, error) {
			return goptim.NewAdagrad(p, decode[goptim.AdagradOptions](t, arguments))
		},
		"Adafactor": func(p []*goptim.Param[T]) (stepper, error) {
			return goptim.NewAdafactor(p, decode[goptim.AdafactorOptions](t, arguments))
		},
		"Adadelta": func(p []*goptim.Param[T]) (stepper, error) {
			return goptim.NewAdadelta(p, decode[goptim.AdadeltaOptions](t, arguments))
		},
		"Adamax": func(p []*goptim.Param[T]) (stepper, error) {
			return goptim.NewAdamax(p, decode[goptim.AdamaxOptions](t, arguments))
		},
		"ASGD": func(p []*goptim.Param[T]) (stepper, error) {
			return goptim.NewASGD(p, decode[goptim.ASGDOptions](t, arguments))
		},
		"NAdam": func(p []*goptim.Param[T]) (stepper, error) {
			return goptim.NewNAdam(p, decode[goptim.NAdamOptions](t, arguments))
		},
		"RAdam": func(p []*goptim.Param[T]) (stepper, error) {
			return goptim.NewRAdam(p, decode[goptim.RAdamOptions](t, arguments))
		},
		"RMSprop": func(p []*goptim.Param[T]) (stepper, error) {
			return goptim.NewRMSprop(p, decode[goptim.RMSpropOptions](t, arguments))
		},
		"Rprop": func(p []*goptim.Param[T]) (stepper, error) {
			return goptim.NewRprop(p, decode[goptim.RpropOptions](t, arguments))
		},
	}
}

func decode[O any](t *testing.T, arguments []byte) (o O) {
	d := json.NewDecoder(bytes.NewReader(arguments))
	d.DisallowUnknownFields()
	require.NoError(t, d.Decode(&o))
	return o
}

// goldenInput is the parameter at the start and the gradients of the steps, as hexadecimal bits.
type goldenInput struct {
	Start string
	Grads []string
}

// TestGolden holds the optimizers against testdata/golden.json, the bits that torch computes (tests/golden.py).
func TestGolden(t *testing.T) {
	text, err := os.ReadFile("testdata/golden.json")
	require.NoError(t, err)
	var golden struct {
		Float32, Float64 goldenInput
		Cases            []struct {
			Optimizer        string
			Options          json.RawMessage
			Shape            []int
			Float32, Float64 []string // the parameter after every step
		}
	}
	require.NoError(t, json.Unmarshal(text, &golden))
	require.NotEmpty(t, golden.Cases)
	for _, c := range golden.Cases {
		var options bytes.Buffer
		require.NoError(t, json.Compact(&options, c.Options))
		name := c.Optimizer + options.String()
		t.Run("float32 "+name, func(t *testing.T) {
			build := goldenBuilders[float32](t, c.Options)[c.Optimizer]
			testGolden(t, build, golden.Float32, c.Shape, c.Float32)
		})
		t.Run("float64 "+name, func(t *testing.T) {
			build := goldenBuilders[float64](t, c.Options)[c.Optimizer]
			testGolden(t, build, golden.Float64, c.Shape, c.Float64)
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

// parse reads numbers whose bits stand one behind the other.
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
