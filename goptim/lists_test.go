package goptim_test

import (
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/goptim/goptim/goptim"
)

// goldenLengths are the lengths of the tensors of the list cases: see tests/golden.py.
var goldenLengths = []int{37, 1, 3, 16, 8, 30}

// TestGoldenLists compares operations on lists with torch's.
func TestGoldenLists(t *testing.T) {
	file := readGolden(t)
	require.NotEmpty(t, file.Lists)
	seen := map[string]bool{}
	for _, c := range file.Lists {
		seen[c.Operation] = true
		t.Run(fmt.Sprint(c.Operation, c.Options), func(t *testing.T) {
			t.Run("float32", func(t *testing.T) { testGoldenList[float32](t, c.Operation, c.Options, file.Float32, c.Float32) })
			t.Run("float64", func(t *testing.T) { testGoldenList[float64](t, c.Operation, c.Options, file.Float64, c.Float64) })
		})
	}
	require.Len(t, seen, 5)
}

func testGoldenList[T goptim.Float](t *testing.T, operation string, options map[string]string, in goldenInput, want []string) {
	var params, averages []*goptim.Param[T]
	for i, n := range goldenLengths {
		value, grad := parse[T](t, in.Start)[:n], parse[T](t, in.Grads[i])[:n]
		if strings.HasPrefix(operation, "Clip") {
			params = append(params, &goptim.Param[T]{Value: value, Grad: grad})
		} else {
			params = append(params, &goptim.Param[T]{Value: grad})
			averages = append(averages, &goptim.Param[T]{Value: value})
		}
	}
	norm, err := T(0), error(nil)
	switch operation {
	case "ClipGradNorm":
		o := listOptions[goptim.ClipGradNormOptions](t, options)
		total, failed := goptim.GradNorm(params, goptim.GradNormOptions{NormType: o.NormType})
		require.NoError(t, failed)
		norm, err = goptim.ClipGradNorm(params, o)
		require.Equal(t, total, norm)
	case "ClipGradValue":
		err = goptim.ClipGradValue(params, listOptions[goptim.ClipGradValueOptions](t, options))
	case "EMA":
		err = goptim.EMA(averages, params, listOptions[goptim.EMAOptions](t, options))
	case "SWA":
		err = goptim.SWA(averages, params, listOptions[goptim.SWAOptions](t, options))
	case "PolyakUpdate":
		err = goptim.PolyakUpdate(averages, params, listOptions[goptim.PolyakOptions](t, options))
	}
	require.NoError(t, err)
	if operation == "ClipGradNorm" {
		require.Equal(t, parse[T](t, want[0]), []T{norm})
	}
	all := parse[T](t, want[len(want)-1])
	for i, p := range params {
		written := p.Grad
		if averages != nil {
			written = averages[i].Value
		}
		for k, x := range written {
			require.Equal(t, math.Float64bits(float64(all[k])), math.Float64bits(float64(x)), "tensor %d, element %d: %v, expected %v", i, k, x, all[k])
		}
		all = all[len(written):]
	}
	require.Empty(t, all)
}

// listOptions returns options whose names are those of the Go fields in lower case.
func listOptions[O any](t *testing.T, options map[string]string) (o O) {
	v := reflect.ValueOf(&o).Elem()
	for name, text := range options {
		field := v.FieldByNameFunc(func(s string) bool { return strings.ToLower(s) == name })
		require.True(t, field.IsValid(), name)
		switch field.Kind() {
		case reflect.Bool:
			field.SetBool(text == "True")
		case reflect.Int:
			n, err := strconv.Atoi(text)
			require.NoError(t, err)
			field.SetInt(int64(n))
		default:
			x, err := strconv.ParseFloat(text, 64)
			require.NoError(t, err)
			field.SetFloat(x)
		}
	}
	return o
}

// TestLongNorms compares norms of long tensors with torch's.
func TestLongNorms(t *testing.T) {
	file := readGolden(t)
	require.Len(t, file.Norms.Float32, 5)
	for size := range file.Norms.Float32 {
		n, err := strconv.Atoi(size)
		require.NoError(t, err)
		if n > 1e6 && testing.Short() {
			continue
		}
		testLongNorm[float32](t, n, file.Norms.Float32[size])
		testLongNorm[float64](t, n, file.Norms.Float64[size])
	}
}

func testLongNorm[T goptim.Float](t *testing.T, n int, want string) {
	p := &goptim.Param[T]{Value: make([]T, n), Grad: make([]T, n)}
	for i := range p.Grad {
		p.Grad[i] = T(float64(i*2654435761&0xffffff)/0x1p24 - .5)
	}
	norm, err := goptim.GradNorm([]*goptim.Param[T]{p}, goptim.GradNormOptions{})
	require.NoError(t, err)
	require.Equal(t, parse[T](t, want), []T{norm}, "%d elements", n)
}

// lists are the operations on lists, with options that change every element.
func lists[T goptim.Float]() map[string]func(averages, params []*goptim.Param[T], workers int) error {
	return map[string]func(averages, params []*goptim.Param[T], workers int) error{
		"GradNorm": func(_, p []*goptim.Param[T], workers int) error {
			_, err := goptim.GradNorm(p, goptim.GradNormOptions{Workers: workers})
			return err
		},
		"GradNorm of infinity": func(_, p []*goptim.Param[T], workers int) error {
			_, err := goptim.GradNorm(p, goptim.GradNormOptions{NormType: math.Inf(1), Workers: workers})
			return err
		},
		"ClipGradNorm": func(_, p []*goptim.Param[T], workers int) error {
			_, err := goptim.ClipGradNorm(p, goptim.ClipGradNormOptions{MaxNorm: .1, Workers: workers})
			return err
		},
		"ClipGradValue": func(_, p []*goptim.Param[T], workers int) error {
			return goptim.ClipGradValue(p, goptim.ClipGradValueOptions{ClipValue: .1, Workers: workers})
		},
		"EMA": func(a, p []*goptim.Param[T], workers int) error {
			return goptim.EMA(a, p, goptim.EMAOptions{Decay: .9, Workers: workers})
		},
		"EMA with products": func(a, p []*goptim.Param[T], workers int) error {
			return goptim.EMA(a, p, goptim.EMAOptions{Decay: .9, Form: goptim.EMAMulAdd, Workers: workers})
		},
		"SWA": func(a, p []*goptim.Param[T], workers int) error {
			return goptim.SWA(a, p, goptim.SWAOptions{Averaged: 3, Workers: workers})
		},
		"PolyakUpdate": func(a, p []*goptim.Param[T], workers int) error {
			return goptim.PolyakUpdate(a, p, goptim.PolyakOptions{Tau: .1, Workers: workers})
		},
	}
}

// averagesOf returns averages that differ from the values.
func averagesOf[T goptim.Float](params []*goptim.Param[T]) (averages []*goptim.Param[T]) {
	for _, p := range params {
		a := &goptim.Param[T]{Value: make([]T, len(p.Value))}
		for i, x := range p.Value {
			a.Value[i] = x*x - .5
		}
		averages = append(averages, a)
	}
	return averages
}

func TestListsDoNotDependOnThreads(t *testing.T) {
	if testing.Short() {
		t.Skip("does not depend on the width of vectors")
	}
	sizes := []int{1, 400_001, 0, 33, 200_000, 70_001, 1003}
	for name, do := range lists[float32]() {
		one, many := params[float32](sizes...), params[float32](sizes...)
		oneAverages, manyAverages := averagesOf(one), averagesOf(many)
		require.NoError(t, do(oneAverages, one, 1))
		require.NoError(t, do(manyAverages, many, 2))
		require.Equal(t, one, many, name)
		require.Equal(t, oneAverages, manyAverages, name)
	}
	for _, normType := range []float64{2, math.Inf(1)} {
		var norms []float32
		for _, workers := range []int{1, 2, 3, 8} {
			norm, err := goptim.GradNorm(params[float32](sizes...), goptim.GradNormOptions{NormType: normType, Workers: workers})
			require.NoError(t, err)
			norms = append(norms, norm)
		}
		for _, norm := range norms {
			require.Equal(t, norms[0], norm)
		}
	}
}

func TestListsAllocateNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("does not depend on the width of vectors")
	}
	for name, do := range lists[float64]() {
		p := params[float64](3, 1000, 0, 300_000, 600_000)
		averages := averagesOf(p)
		require.NoError(t, do(averages, p, 2))
		allocations := testing.AllocsPerRun(20, func() {
			if err := do(averages, p, 2); err != nil {
				t.Fatal(err)
			}
		})
		if !goptim.Detector { // under which a sync.Pool drops some of what it is given
			assert.Zero(t, allocations, name)
		}
	}
}

func TestListsThatAreEmpty(t *testing.T) {
	for name, do := range lists[float32]() {
		require.NoError(t, do(nil, nil, 0), name)
		none := []*goptim.Param[float32]{{Value: []float32{1}}, {Value: []float32{}, Grad: []float32{}}}
		require.NoError(t, do(averagesOf(none), none, 0), name)
	}
	norm, err := goptim.GradNorm([]*goptim.Param[float32]{{Value: []float32{1}}}, goptim.GradNormOptions{})
	require.NoError(t, err)
	require.Zero(t, norm)
}

// TestClipGradNormAtItsLimit checks gradients whose norm is below, at and above the limit, and not finite.
func TestClipGradNormAtItsLimit(t *testing.T) {
	inf, nan := math.Inf(1), math.NaN()
	for _, c := range []struct{ x, y, max, wantX, wantY, norm float64 }{
		{3, 4, 5.1, 3, 4, 5},
		{3, 4, 5 + 1e-6, 3, 4, 5}, // the coefficient rounds to 1
		{3, 4, 2.5, 1.4999997, 1.9999996, 5},
		{0, 0, 1, 0, 0, 0},
		{3, 4, inf, 3, 4, 5},
		{3, inf, 1, 0, nan, inf},
		{3, nan, 1, nan, nan, nan},
	} {
		p := []*goptim.Param[float64]{{Value: make([]float64, 1), Grad: []float64{c.x}}, {Value: make([]float64, 1), Grad: []float64{c.y}}}
		norm, err := goptim.ClipGradNorm(p, goptim.ClipGradNormOptions{MaxNorm: c.max})
		require.NoError(t, err)
		assert.Equal(t, fmt.Sprint(c.norm), fmt.Sprint(norm))
		assert.InDelta(t, c.wantX, p[0].Grad[0], 1e-7, "%+v", c)
		assert.InDelta(t, c.wantY, p[1].Grad[0], 1e-7, "%+v", c)
	}
}

// TestClipOfSharedGradients clips gradients that share memory, which torch multiplies once for each.
func TestClipOfSharedGradients(t *testing.T) {
	for _, n := range []int{6, 700_000} {
		shared := make([]float64, n+1)
		for i := range shared {
			shared[i] = 1
		}
		p := []*goptim.Param[float64]{{Value: make([]float64, n), Grad: shared[:n]}, {Value: make([]float64, n), Grad: shared[1:]}}
		norm, err := goptim.ClipGradNorm(p, goptim.ClipGradNormOptions{MaxNorm: .5 * math.Sqrt(float64(2*n)), Workers: 2})
		require.NoError(t, err)
		require.InDelta(t, math.Sqrt(float64(2*n)), norm, 1e-9)
		require.InDelta(t, .5, shared[0], 1e-5)
		require.InDelta(t, .5, shared[n], 1e-5)
		for _, x := range shared[1:n] {
			require.InDelta(t, .25, x, 1e-5)
		}
	}
}

// TestAveragesOfSharedParameters updates averages that are also parameters of later averages, in order.
func TestAveragesOfSharedParameters(t *testing.T) {
	for _, n := range []int{5, 700_000} {
		first, second := make([]float32, n), make([]float32, n)
		value := make([]float32, n)
		for i := range value {
			value[i] = 4
		}
		averages := []*goptim.Param[float32]{{Value: first}, {Value: second}}
		params := []*goptim.Param[float32]{{Value: value}, {Value: first}}
		require.NoError(t, goptim.EMA(averages, params, goptim.EMAOptions{Decay: .5, Workers: 2}))
		for i := range value {
			require.Equal(t, []float32{2, 1}, []float32{first[i], second[i]})
		}
	}
}

func TestNonfiniteNorms(t *testing.T) {
	for _, bad := range []float32{float32(math.Inf(1)), float32(math.NaN()), 3e38} {
		p := params[float32](4, 5, 6)
		p[0].Grad, p[2].Name, p[2].Grad[1] = nil, "w", bad
		before := fmt.Sprint(p[1].Grad, p[2].Grad)
		_, err := goptim.ClipGradNorm(p, goptim.ClipGradNormOptions{MaxNorm: .1, ErrorIfNonfinite: true})
		require.ErrorIs(t, err, goptim.ErrParam)
		require.ErrorContains(t, err, "ClipGradNorm: parameter 2 (w): the norm of the gradient is")
		require.Equal(t, before, fmt.Sprint(p[1].Grad, p[2].Grad))
		_, err = goptim.GradNorm(p, goptim.GradNormOptions{ErrorIfNonfinite: true})
		require.ErrorIs(t, err, goptim.ErrParam)
		_, err = goptim.GradNorm(p, goptim.GradNormOptions{})
		require.NoError(t, err)
	}
	p := params[float32](1, 1)
	p[0].Grad[0], p[1].Grad[0] = 3e38, 3e38
	_, err := goptim.GradNorm(p, goptim.GradNormOptions{ErrorIfNonfinite: true})
	require.ErrorContains(t, err, "the norm of all gradients is +Inf")
}

func TestListsRefuse(t *testing.T) {
	nan := math.NaN()
	good := func() ([]*goptim.Param[float32], []*goptim.Param[float32]) {
		p := params[float32](3, 4)
		return averagesOf(p), p
	}
	type change = func(averages, p []*goptim.Param[float32]) ([]*goptim.Param[float32], []*goptim.Param[float32])
	for says, edit := range map[string]change{
		"parameter 1 is nil": func(a, p []*goptim.Param[float32]) ([]*goptim.Param[float32], []*goptim.Param[float32]) {
			p[1] = nil
			return a, p
		},
		"parameter 1 (w): the ": func(a, p []*goptim.Param[float32]) ([]*goptim.Param[float32], []*goptim.Param[float32]) {
			p[1].Name, p[1].Grad, a[1].Value = "w", make([]float32, 5), make([]float32, 5)
			return a, p
		},
	} {
		for name, do := range lists[float32]() {
			a, p := edit(good())
			before := fmt.Sprint(a[0], p[0])
			err := do(a, p, 0)
			require.ErrorIs(t, err, goptim.ErrParam, name)
			require.ErrorContains(t, err, says)
			require.Equal(t, before, fmt.Sprint(a[0], p[0]))
		}
	}
	for _, name := range []string{"EMA", "SWA", "PolyakUpdate"} {
		do := lists[float32]()[name]
		a, p := good()
		require.ErrorContains(t, do(a[:1], p, 0), name+": 1 averages, expected 2")
		require.ErrorContains(t, do(p, p, 0), "parameter 0: the average shares memory with the value")
		a[1] = nil
		require.ErrorContains(t, do(a, p, 0), "average 1 is nil")
	}
	a, p := good()
	norm := func(o goptim.GradNormOptions) error { _, err := goptim.GradNorm(p, o); return err }
	clip := func(o goptim.ClipGradNormOptions) error { _, err := goptim.ClipGradNorm(p, o); return err }
	for says, err := range map[string]error{
		"GradNorm: NormType is 3, expected 2 or +Inf":                     norm(goptim.GradNormOptions{NormType: 3}),
		"GradNorm: NormType is NaN":                                       norm(goptim.GradNormOptions{NormType: nan}),
		"GradNorm: Order is 3, expected one of the constants":             norm(goptim.GradNormOptions{Order: 3}),
		"ClipGradNorm: MaxNorm is 0, expected above 0":                    clip(goptim.ClipGradNormOptions{}),
		"ClipGradNorm: MaxNorm is NaN":                                    clip(goptim.ClipGradNormOptions{MaxNorm: nan}),
		"ClipGradNorm: NormType is 1":                                     clip(goptim.ClipGradNormOptions{MaxNorm: 1, NormType: 1}),
		"ClipGradValue: ClipValue is -1":                                  goptim.ClipGradValue(p, goptim.ClipGradValueOptions{ClipValue: -1}),
		"1e+40 cannot be converted to float32 without overflow":           goptim.ClipGradValue(p, goptim.ClipGradValueOptions{ClipValue: 1e40}),
		"EMA: Decay is 1.1, expected at least 0 and at most 1":            goptim.EMA(a, p, goptim.EMAOptions{Decay: 1.1}),
		"EMA: Form is 2, expected one of the constants":                   goptim.EMA(a, p, goptim.EMAOptions{Form: 2}),
		"SWA: Averaged is -1, expected at least 0":                        goptim.SWA(a, p, goptim.SWAOptions{Averaged: -1}),
		"PolyakUpdate: Tau is 0, expected above 0 and at most 1: invalid": goptim.PolyakUpdate(a, p, goptim.PolyakOptions{}),
	} {
		require.ErrorIs(t, err, goptim.ErrOption)
		require.ErrorContains(t, err, says)
	}
	unchangedA, unchangedP := good()
	require.Equal(t, unchangedA, a)
	require.Equal(t, unchangedP, p)
}
