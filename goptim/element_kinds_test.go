package goptim_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/goptim/goptim/goptim"
	"github.com/goptim/goptim/goptim/internal/safetensors"
)

// TestKindsOf16Bits compares the optimizers that are not elementwise with themselves on float32 copies, whose parameters and
// states are rounded after each step.
func TestKindsOf16Bits(t *testing.T) {
	t.Run("bfloat16", func(t *testing.T) {
		testKindsOf16Bits(t, goptim.BFloat16FromFloat32, goptim.BFloat16.Float32)
	})
	t.Run("float16", func(t *testing.T) {
		testKindsOf16Bits(t, goptim.Float16FromFloat32, goptim.Float16.Float32)
	})
}

var shapesOf16Bits = map[string][][]int{
	"Adafactor": {{1}, {37}, {3, 5}, {40, 33}, {1100, 1}, {90, 3, 3}, {70, 2, 5}, {9, 1, 1}, {2, 70, 19}},
	"Muon":      {{3, 5}, {5, 3}, {33, 20}},
	"Sparse":    {{9, 1}, {9, 3}, {9, 32}, {9, 37}, {5, 2100}},
}

func testKindsOf16Bits[T goptim.Element](t *testing.T, narrow func(float32) T, widen func(T) float32) {
	number := func(i, step int) float32 { return float32((i*31+step*7)%1013)/500 - 1 }
	fill := func(s []T, copies []float32, step int) {
		for i := range s {
			s[i] = narrow(number(i, step))
			copies[i] = widen(s[i])
		}
	}
	compare := func(what string, expected []float32, got []T) {
		for i, x := range expected {
			if y := widen(got[i]); math.Float32bits(x) != math.Float32bits(y) {
				require.Equal(t, x, y, "%s, element %d of %d", what, i, len(expected))
			}
		}
	}
	round := func(s []float32) {
		for i := range s {
			s[i] = widen(narrow(s[i]))
		}
	}
	finish := func(what string, opt, oracle goptim.Optimizer) {
		expected := roundedState(t, oracle, round)
		for _, tensor := range stateFile(t, opt).Tensors {
			of := expected[tensor.Name]
			if len(tensor.Shape) == 0 {
				assert.Equal(t, of.Data, tensor.Data, what)
				continue
			}
			got := make([]T, len(tensor.Data)/2)
			_, err := binary.Decode(tensor.Data, binary.LittleEndian, got)
			require.NoError(t, err)
			compare(what+": "+tensor.Name, floatsOf(t, of), got)
		}
	}
	oracles := constructors[float32]()
	for k, c := range constructors[T]() {
		for _, options := range []any{c.usual, c.unusual} {
			if shapesOf16Bits[c.name] == nil {
				continue // elementwise
			}
			if o, ok := options.(goptim.AdafactorOptions); ok && o.Eps[0] == 0 {
				o.Eps[0] = 0x1p-9 // whose default depends on the type
				options = o
			}
			var params []*goptim.Param[T]
			var copies []*goptim.Param[float32]
			for _, shape := range shapesOf16Bits[c.name] {
				n := elementsIn(shape)
				params = append(params, &goptim.Param[T]{Value: make([]T, n), Grad: make([]T, n), Shape: shape})
				copies = append(copies, &goptim.Param[float32]{Value: make([]float32, n), Grad: make([]float32, n), Shape: shape})
				fill(params[len(params)-1].Value, copies[len(copies)-1].Value, 50)
			}
			opt, err := c.with(params, options)
			require.NoError(t, err)
			oracle, err := oracles[k].with(copies, options)
			require.NoError(t, err)
			for step := range 4 {
				for i, p := range params {
					fill(p.Grad, copies[i].Grad, step+i)
				}
				require.NoError(t, opt.Step())
				require.NoError(t, oracle.Step())
				what := fmt.Sprintf("%s, %+v, step %d", c.name, options, step)
				for i, p := range copies {
					round(p.Value)
					compare(what, p.Value, params[i].Value)
				}
				finish(what, opt, oracle)
			}
		}
	}
	sparseOracles := sparseConstructors[float32]()
	for k, c := range sparseConstructors[T]() {
		for _, options := range []any{c.usual, c.unusual} {
			if o, ok := options.(goptim.SGDOptions); ok {
				options = goptim.SGDOptions{LR: .1, Maximize: o.Maximize} // the others must be zero
			}
			if o, ok := options.(goptim.AdagradOptions); ok {
				o.WeightDecay, o.InitialAccumulatorValue = 0, .25
				options = o
			}
			var params []*goptim.SparseParam[T]
			var copies []*goptim.SparseParam[float32]
			for _, shape := range shapesOf16Bits["Sparse"] {
				n, width := elementsIn(shape), shape[1]
				indices := []int64{4, 0, 1, 0, 4, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0}
				params = append(params, &goptim.SparseParam[T]{
					Value: make([]T, n), Width: width, Indices: indices, Grad: make([]T, len(indices)*width)})
				copies = append(copies, &goptim.SparseParam[float32]{
					Value: make([]float32, n), Width: width, Indices: indices, Grad: make([]float32, len(indices)*width)})
				fill(params[len(params)-1].Value, copies[len(copies)-1].Value, 50)
			}
			opt, err := c.with(params, options)
			require.NoError(t, err)
			oracle, err := sparseOracles[k].with(copies, options)
			require.NoError(t, err)
			for step := range 4 {
				for i, p := range params {
					fill(p.Grad, copies[i].Grad, step+i)
				}
				require.NoError(t, opt.Step())
				require.NoError(t, oracle.Step())
				what := fmt.Sprintf("%s, %+v, step %d", c.name, options, step)
				for i, p := range copies {
					round(p.Value)
					compare(what, p.Value, params[i].Value)
				}
				finish(what, opt, oracle)
			}
		}
	}
}

func elementsIn(shape []int) int {
	n := 1
	for _, k := range shape {
		n *= k
	}
	return n
}

func stateFile(t *testing.T, o goptim.Optimizer) *safetensors.File {
	var b bytes.Buffer
	require.NoError(t, goptim.WriteState(&b, o))
	f, err := safetensors.Parse(b.Bytes())
	require.NoError(t, err)
	return f
}

func floatsOf(t *testing.T, tensor safetensors.Tensor) []float32 {
	require.Equal(t, "F32", tensor.DType)
	all := make([]float32, len(tensor.Data)/4)
	_, err := binary.Decode(tensor.Data, binary.LittleEndian, all)
	require.NoError(t, err)
	return all
}

// roundedState rounds the tensors of a float32 optimizer's state, except scalars, and returns them by name.
func roundedState(t *testing.T, o goptim.Optimizer, round func([]float32)) map[string]safetensors.Tensor {
	f, all := stateFile(t, o), map[string]safetensors.Tensor{}
	for i := range f.Tensors {
		tensor := &f.Tensors[i]
		if len(tensor.Shape) > 0 {
			numbers := floatsOf(t, *tensor)
			round(numbers)
			data, err := binary.Append(nil, binary.LittleEndian, numbers)
			require.NoError(t, err)
			tensor.Data = data
		}
		all[tensor.Name] = *tensor
	}
	require.NoError(t, goptim.ReadState(bytes.NewReader(fileOf(t, f)), o))
	return all
}

// TestLBFGSOf16Bits compares LBFGS without a line search with itself on float32 copies that are rounded before each evaluation.
func TestLBFGSOf16Bits(t *testing.T) {
	t.Run("bfloat16", func(t *testing.T) {
		testLBFGSOf16Bits(t, goptim.BFloat16FromFloat32, goptim.BFloat16.Float32)
	})
	t.Run("float16", func(t *testing.T) {
		testLBFGSOf16Bits(t, goptim.Float16FromFloat32, goptim.Float16.Float32)
	})
}

func testLBFGSOf16Bits[T goptim.Element](t *testing.T, narrow func(float32) T, widen func(T) float32) {
	var params []*goptim.Param[T]
	copies := valleyParams[float32](3, 5000, 1, 64)
	for _, c := range copies {
		p := &goptim.Param[T]{Value: make([]T, len(c.Value)), Grad: make([]T, len(c.Value))}
		for i, x := range c.Value {
			p.Value[i] = narrow(x)
		}
		params = append(params, p)
	}
	options := goptim.LBFGSOptions{LR: .5, MaxIter: 4, HistorySize: 3}
	opt, err := goptim.NewLBFGS(params, options)
	require.NoError(t, err)
	oracle, err := goptim.NewLBFGS(copies, options)
	require.NoError(t, err)
	evaluate := func() (loss float64, err error) {
		for _, p := range copies {
			for i := range p.Value {
				p.Value[i] = widen(narrow(p.Value[i]))
			}
		}
		loss, err = valley(copies)
		for _, p := range copies {
			for i := range p.Grad {
				p.Grad[i] = widen(narrow(p.Grad[i]))
			}
		}
		return loss, err
	}
	run := func(opt *goptim.LBFGS[T]) {
		points := 0
		var seen [][]float32
		_, err := oracle.Step(func() (float64, error) {
			loss, err := evaluate()
			for _, p := range copies {
				seen = append(seen, slices.Clone(p.Value))
			}
			return loss, err
		})
		require.NoError(t, err)
		shadow := valleyParams[float32](3, 5000, 1, 64)
		_, err = opt.Step(func() (float64, error) {
			for k, p := range params {
				for i, x := range p.Value {
					shadow[k].Value[i] = widen(x)
				}
				require.Equal(t, seen[points], shadow[k].Value)
				points++
			}
			loss, err := valley(shadow)
			for k, p := range params {
				for i, x := range shadow[k].Grad {
					p.Grad[i] = narrow(x)
				}
			}
			return loss, err
		})
		require.NoError(t, err)
		require.Len(t, seen, points)
	}
	run(opt)
	run(opt)
	saved, err := opt.MarshalBinary()
	require.NoError(t, err)
	resumed, err := goptim.NewLBFGS(params, options)
	require.NoError(t, err)
	require.NoError(t, resumed.UnmarshalBinary(saved))
	run(resumed)
	require.Equal(t, oracle.Evaluations(), resumed.Evaluations())

	search, err := goptim.NewLBFGS(params, goptim.LBFGSOptions{StrongWolfe: true})
	require.NoError(t, err)
	first, last := 0., 0.
	_, err = search.Step(func() (float64, error) {
		loss := 0.
		for _, p := range params {
			for i, x := range p.Value {
				d := widen(x) - 1
				p.Grad[i] = narrow(d)
				loss += float64(d) * float64(d) / 2
			}
		}
		if last = loss; first == 0 {
			first = loss
		}
		return loss, nil
	})
	require.NoError(t, err)
	require.Less(t, last, first/100)
}

// TestStatesOf16BitsFromPython continues runs of goptim's Python classes from the states that they saved.
func TestStatesOf16BitsFromPython(t *testing.T) {
	paths, err := filepath.Glob("testdata/half/*.safetensors")
	require.NoError(t, err)
	require.NotEmpty(t, paths)
	for _, path := range paths {
		name := strings.TrimSuffix(filepath.Base(path), ".safetensors")
		t.Run(name, func(t *testing.T) {
			if strings.HasSuffix(name, "-bfloat16") {
				testStateOf16Bits[goptim.BFloat16](t, readRun(t, path))
			} else {
				testStateOf16Bits[goptim.Float16](t, readRun(t, path))
			}
		})
	}
}

func testStateOf16Bits[T goptim.Element](t *testing.T, r *runFile) {
	numbers := func(format string, a ...any) ([]T, []int) {
		tensor, ok := r.tensors[fmt.Sprintf(format, a...)]
		if !ok {
			return nil, nil
		}
		all := make([]T, len(tensor.Data)/2)
		_, err := binary.Decode(tensor.Data, binary.LittleEndian, all)
		require.NoError(t, err)
		return all, tensor.Shape
	}
	var params []*goptim.Param[T]
	var sparse []*goptim.SparseParam[T]
	for _, name := range r.names {
		v, shape := numbers("value.%d.%s", savedStep, name)
		params = append(params, &goptim.Param[T]{Name: name, Value: v, Shape: shape})
		sparse = append(sparse, &goptim.SparseParam[T]{Name: name, Value: v, Width: shape[len(shape)-1]})
	}
	var opt goptim.Optimizer
	_, rows := r.tensors["index.1."+r.names[0]]
	if rows {
		all := sparseConstructors[T]()
		at := slices.IndexFunc(all, func(c constructor[goptim.SparseParam[T]]) bool {
			return strings.TrimPrefix(c.name, "Sparse") == strings.TrimPrefix(r.class, "Sparse")
		})
		require.GreaterOrEqual(t, at, 0, r.class)
		o, err := all[at].build(sparse, func(any) {})
		require.NoError(t, err)
		opt = o
	} else {
		all := constructors[T]()
		at := slices.IndexFunc(all, func(c constructor[goptim.Param[T]]) bool { return c.name == r.class })
		require.GreaterOrEqual(t, at, 0, r.class)
		o, err := all[at].build(params, func(any) {})
		require.NoError(t, err)
		opt = o
	}
	require.NoError(t, goptim.ReadState(bytes.NewReader(fileOf(t, r.file)), opt))
	for at := savedStep + 1; at <= runSteps; at++ {
		for i, name := range r.names {
			g, _ := numbers("grad.%d.%s", at, name)
			params[i].Grad, sparse[i].Grad = g, g
			if rows {
				index := r.tensors[fmt.Sprintf("index.%d.%s", at, name)]
				sparse[i].Indices = make([]int64, len(index.Data)/8)
				_, err := binary.Decode(index.Data, binary.LittleEndian, sparse[i].Indices)
				require.NoError(t, err)
			}
		}
		require.NoError(t, opt.Step())
		for i, name := range r.names {
			want, _ := numbers("value.%d.%s", at, name)
			require.Equal(t, want, params[i].Value, "step %d: %s", at, name)
		}
	}
}
