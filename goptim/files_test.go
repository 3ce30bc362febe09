package goptim_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/goptim/goptim/goptim"
	"github.com/goptim/goptim/goptim/internal/safetensors"
)

var update = flag.Bool("update", false, "write testdata/go, which the Python tests read")

// runSteps is the number of steps of a run. The file contains the state after savedStep. See tests/golden.py.
const runSteps, savedStep = 5, 3

// A runFile is a file of testdata/torch. See tests/golden.py for its format.
type runFile struct {
	class   string
	names   []string
	tensors map[string]safetensors.Tensor
	file    *safetensors.File
}

func readRun(t *testing.T, path string) *runFile {
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	f, err := safetensors.Parse(data)
	require.NoError(t, err)
	var groups []struct {
		Optimizer string
		Params    []string
	}
	require.NoError(t, json.Unmarshal([]byte(f.Metadata["param_groups"]), &groups))
	require.Len(t, groups, 1)
	r := &runFile{groups[0].Optimizer, groups[0].Params, map[string]safetensors.Tensor{}, f}
	for _, tensor := range f.Tensors {
		r.tensors[tensor.Name] = tensor
	}
	return r
}

// stateless returns the file without a state.
func (r *runFile) stateless(t *testing.T) []byte {
	f := safetensors.File{Metadata: maps.Clone(r.file.Metadata)}
	for key, x := range map[string]string{"k": "0", "step": "0", "weight_sum": "0.0", "lr_max": "-1.0", "scheduled_lr": "0.0"} {
		entry := regexp.MustCompile(fmt.Sprintf(`"%s": ?[^,}]+`, key))
		f.Metadata["param_groups"] = entry.ReplaceAllString(f.Metadata["param_groups"], fmt.Sprintf(`"%s": %s`, key, x))
	}
	return fileOf(t, &f)
}

func fileOf(t *testing.T, f *safetensors.File) []byte {
	var b bytes.Buffer
	_, err := f.WriteTo(&b)
	require.NoError(t, err)
	return b.Bytes()
}

func read[T goptim.Float](t *testing.T, r *runFile, name string) ([]T, []int) {
	tensor, ok := r.tensors[name]
	if !ok {
		return nil, nil
	}
	n := 1
	for _, size := range tensor.Shape {
		n *= size
	}
	var values []T
	switch any(values).(type) {
	case []float32:
		all := make([]float32, n)
		_, err := binary.Decode(tensor.Data, binary.LittleEndian, all)
		require.NoError(t, err)
		values = any(all).([]T)
	case []float64:
		all := make([]float64, n)
		_, err := binary.Decode(tensor.Data, binary.LittleEndian, all)
		require.NoError(t, err)
		values = any(all).([]T)
	}
	return values, tensor.Shape
}

// follow returns an optimizer with the run's class and parameters, with the values after the given step.
func follow[T goptim.Float](t *testing.T, r *runFile, step int) (subject[T], func(step int)) {
	var s subject[T]
	value := func(name string) ([]T, []int) {
		v, shape := read[T](t, r, fmt.Sprintf("value.%d.%s", step, name))
		require.NotNil(t, v)
		return v, shape
	}
	if _, sparse := r.tensors["index.1."+r.names[0]]; sparse {
		for _, name := range r.names {
			v, shape := value(name)
			s.sparse = append(s.sparse, &goptim.SparseParam[T]{Name: name, Value: v, Width: shape[1]})
		}
		name := "Sparse" + strings.TrimPrefix(r.class, "Sparse")
		all := sparseConstructors[T]()
		at := slices.IndexFunc(all, func(c constructor[goptim.SparseParam[T]]) bool { return c.name == name })
		require.GreaterOrEqual(t, at, 0, name)
		o, err := all[at].build(s.sparse, func(any) {})
		require.NoError(t, err)
		s.Stateful, s.step = o, o.Step
	} else {
		for _, name := range r.names {
			v, shape := value(name)
			s.params = append(s.params, &goptim.Param[T]{Name: name, Value: v, Shape: shape})
		}
		if r.class == "LBFGS" {
			o, err := goptim.NewLBFGS(s.params, goptim.LBFGSOptions{})
			require.NoError(t, err)
			for _, p := range s.params {
				p.Grad = make([]T, len(p.Value))
			}
			s.Stateful, s.step = o, func() error {
				_, err := o.Step(func() (float64, error) { return valley(s.params) })
				return err
			}
		} else {
			built, err := golden[T](t, r.class, []byte("{}"))(s.params)
			require.NoError(t, err)
			s.Stateful, s.step = built.(goptim.Optimizer), built.Step
		}
	}
	return s, func(step int) {
		for _, p := range s.params {
			if r.class != "LBFGS" {
				p.Grad, _ = read[T](t, r, fmt.Sprintf("grad.%d.%s", step, p.Name))
			}
		}
		for _, p := range s.sparse {
			p.Grad, _ = read[T](t, r, fmt.Sprintf("grad.%d.%s", step, p.Name))
			index := r.tensors[fmt.Sprintf("index.%d.%s", step, p.Name)]
			p.Indices = make([]int64, len(index.Data)/8)
			_, err := binary.Decode(index.Data, binary.LittleEndian, p.Indices)
			require.NoError(t, err)
		}
		require.NoError(t, s.step())
	}
}

// TestTorchsRuns repeats torch's runs: from the beginning, and from the state that torch's optimizer saved.
func TestTorchsRuns(t *testing.T) {
	paths, err := filepath.Glob("testdata/torch/*.safetensors")
	require.NoError(t, err)
	require.NotEmpty(t, paths)
	for _, path := range paths {
		name := strings.TrimSuffix(filepath.Base(path), ".safetensors")
		t.Run(name, func(t *testing.T) {
			if strings.HasSuffix(name, "32") {
				testTorchsRun[float32](t, readRun(t, path))
			} else {
				testTorchsRun[float64](t, readRun(t, path))
			}
		})
	}
}

func testTorchsRun[T goptim.Float](t *testing.T, r *runFile) {
	for _, from := range []int{0, savedStep} {
		s, step := follow[T](t, r, from)
		file := r.stateless(t)
		if from > 0 {
			file = fileOf(t, r.file)
		}
		require.NoError(t, goptim.ReadState(bytes.NewReader(file), s))
		for at := from + 1; at <= runSteps; at++ {
			step(at)
			for i, name := range r.names {
				want, _ := read[T](t, r, fmt.Sprintf("value.%d.%s", at, name))
				requireClose(t, r.class, want, s.values()[i], fmt.Sprintf("from step %d: step %d: %s", from, at, name))
			}
		}
	}
}

// requireClose requires exact equality, except for optimizers that sum in a different order than torch.
func requireClose[T goptim.Float](t *testing.T, class string, want, got []T, what string) {
	tolerance := 0.
	switch class {
	case "LBFGS":
		tolerance = 1e-12
		if _, ok := any(want).([]float32); ok {
			tolerance = 1e-5
		}
	case "Muon": // whose products are rounded to bfloat16
		tolerance = 2e-4
	}
	if tolerance == 0 {
		require.Equal(t, want, got, what)
		return
	}
	for i := range want {
		require.InDelta(t, float64(want[i]), float64(got[i]), tolerance*max(1, math.Abs(float64(want[i]))), what)
	}
}

// TestFilesForPython compares testdata/go, which the Python tests read, with the files that this package writes. The runs
// have the gradients of testdata/torch and the same format. The flag -update writes the files.
func TestFilesForPython(t *testing.T) {
	paths, err := filepath.Glob("testdata/torch/*-float32.safetensors")
	require.NoError(t, err)
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) {
			r := readRun(t, path)
			s, step := follow[float32](t, r, 0)
			require.NoError(t, goptim.ReadState(bytes.NewReader(r.stateless(t)), s))
			written := new(safetensors.File)
			for _, tensor := range r.file.Tensors {
				if !strings.HasPrefix(tensor.Name, "state.") && !strings.HasPrefix(tensor.Name, "value.") {
					written.Tensors = append(written.Tensors, tensor)
				}
			}
			values := func(step int) {
				for i, name := range r.names {
					data, err := binary.Append(nil, binary.LittleEndian, s.values()[i])
					require.NoError(t, err)
					shape := r.tensors["value.0."+name].Shape
					written.Tensors = append(written.Tensors, safetensors.Tensor{
						Name: fmt.Sprintf("value.%d.%s", step, name), DType: "F32", Shape: shape, Data: data})
				}
			}
			values(0)
			for at := 1; at <= runSteps; at++ {
				step(at)
				values(at)
				if at == savedStep {
					var state bytes.Buffer
					require.NoError(t, goptim.WriteState(&state, s))
					f, err := safetensors.Parse(state.Bytes())
					require.NoError(t, err)
					written.Metadata = f.Metadata
					written.Tensors = append(written.Tensors, f.Tensors...)
				}
			}
			data, path := fileOf(t, written), filepath.Join("testdata", "go", filepath.Base(path))
			if *update {
				require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
				require.NoError(t, os.WriteFile(path, data, 0o644))
			}
			have, err := os.ReadFile(path)
			require.NoError(t, err)
			assert.True(t, bytes.Equal(have, data), "run `make golden`")
		})
	}
}
