package goptim_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/goptim/goptim/goptim"
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/safetensors"
)

// TestStoredRuns repeats Python's runs with the options of Storage: from the beginning, and from the saved state. The states that it
// saves are Python's.
func TestStoredRuns(t *testing.T) {
	paths, err := filepath.Glob("testdata/storage/*.safetensors")
	require.NoError(t, err)
	require.NotEmpty(t, paths)
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".safetensors"), func(t *testing.T) {
			switch r := readRun(t, path); r.tensors["value.0.a"].DType {
			case "BF16":
				testStoredRun[goptim.BFloat16](t, r)
			case "F16":
				testStoredRun[goptim.Float16](t, r)
			default:
				testStoredRun[float32](t, r)
			}
		})
	}
}

func testStoredRun[T goptim.Element](t *testing.T, r *runFile) {
	elements := func(name string) []T {
		tensor, ok := r.tensors[name]
		require.True(t, ok, name)
		n := 1
		for _, size := range tensor.Shape {
			n *= size
		}
		all := make([]T, n)
		_, err := binary.Decode(tensor.Data, binary.LittleEndian, all)
		require.NoError(t, err)
		return all
	}
	for _, from := range []int{0, savedStep} {
		var params []*goptim.Param[T]
		var sparse []*goptim.SparseParam[T] // the same, if gradients are sparse
		for _, name := range r.names {
			value := fmt.Sprintf("value.%d.%s", from, name)
			p := &goptim.Param[T]{Name: name, Value: elements(value), Shape: r.tensors[value].Shape}
			params = append(params, p)
			if _, ok := r.tensors["index.1."+name]; ok {
				sparse = append(sparse, &goptim.SparseParam[T]{Name: name, Value: p.Value, Width: p.Shape[1]})
			}
		}
		opt := storedOptimizer(t, r.class, params, sparse)
		file := r.stateless(t)
		if from > 0 {
			file = fileOf(t, r.file)
		}
		require.NoError(t, goptim.ReadState(bytes.NewReader(file), opt))
		for at := from + 1; at <= runSteps; at++ {
			for i, p := range params {
				p.Grad = elements(fmt.Sprintf("grad.%d.%s", at, p.Name))
				if sparse != nil {
					index := r.tensors[fmt.Sprintf("index.%d.%s", at, p.Name)]
					sparse[i].Grad, sparse[i].Indices = p.Grad, make([]int64, len(index.Data)/8)
					_, err := binary.Decode(index.Data, binary.LittleEndian, sparse[i].Indices)
					require.NoError(t, err)
				}
			}
			require.NoError(t, opt.Step())
			if s, ok := opt.(interface {
				Train() error
				Eval() error
			}); ok && at == 2 {
				require.NoError(t, s.Eval())
				require.NoError(t, s.Eval())
				require.NoError(t, s.Train())
			}
			for _, p := range params {
				require.Equal(t, elements(fmt.Sprintf("value.%d.%s", at, p.Name)), p.Value, "from step %d: step %d: %s", from, at, p.Name)
			}
			if at != savedStep {
				continue
			}
			var state bytes.Buffer
			require.NoError(t, goptim.WriteState(&state, opt))
			f, err := safetensors.Parse(state.Bytes())
			require.NoError(t, err)
			for _, tensor := range f.Tensors {
				assert.Equal(t, r.tensors[tensor.Name], tensor)
			}
			for name := range r.tensors {
				if strings.HasPrefix(name, "state.") {
					assert.True(t, contains(f, name), name)
				}
			}
			other := storedOptimizer(t, r.class, params, sparse)
			require.NoError(t, goptim.ReadState(&state, other))
			a, err := opt.MarshalBinary()
			require.NoError(t, err)
			b, err := other.MarshalBinary()
			require.NoError(t, err)
			assert.Equal(t, a, b)
		}
	}
}

func contains(f *safetensors.File, name string) bool {
	for _, t := range f.Tensors {
		if t.Name == name {
			return true
		}
	}
	return false
}

func storedOptimizer[T goptim.Element](
	t *testing.T, class string, params []*goptim.Param[T], sparse []*goptim.SparseParam[T],
) goptim.Optimizer {
	var opt goptim.Optimizer
	var err error
	if sparse != nil {
		switch class {
		case "SGD":
			opt, err = goptim.NewSparseSGD(sparse, goptim.SGDOptions{})
		case "Adagrad":
			opt, err = goptim.NewSparseAdagrad(sparse, goptim.AdagradOptions{})
		default:
			opt, err = goptim.NewSparseAdam(sparse, goptim.SparseAdamOptions{})
		}
		require.NoError(t, err)
		return opt
	}
	switch class {
	case "AdamWScheduleFree":
		opt, err = goptim.NewAdamWScheduleFree(params, goptim.AdamWScheduleFreeOptions{})
	case "SGDScheduleFree":
		opt, err = goptim.NewSGDScheduleFree(params, goptim.SGDScheduleFreeOptions{})
	case "RAdamScheduleFree":
		opt, err = goptim.NewRAdamScheduleFree(params, goptim.RAdamScheduleFreeOptions{})
	case "AdamW":
		opt, err = goptim.NewAdamW(params, goptim.AdamOptions{})
	case "SGD":
		opt, err = goptim.NewSGD(params, goptim.SGDOptions{})
	case "Adafactor":
		opt, err = goptim.NewAdafactor(params, goptim.AdafactorOptions{})
	case "Lion":
		opt, err = goptim.NewLion(params, goptim.LionOptions{})
	default:
		opt, err = goptim.NewNAdam(params, goptim.NAdamOptions{})
	}
	require.NoError(t, err)
	return opt
}

func ofBFloat16(n int) (p *goptim.Param[goptim.BFloat16]) {
	p = &goptim.Param[goptim.BFloat16]{Value: make([]goptim.BFloat16, n), Grad: make([]goptim.BFloat16, n)}
	for i := range n {
		p.Value[i] = goptim.BFloat16FromFloat32(float32(i%7) - 2.6)
		p.Grad[i] = goptim.BFloat16FromFloat32(float32(i%5) - 1.9)
	}
	return p
}

// TestStorageChanges changes the storage between steps. What was stored exactly is not lost.
func TestStorageChanges(t *testing.T) {
	p := ofBFloat16(50)
	opt, err := goptim.NewSGD([]*goptim.Param[goptim.BFloat16]{p}, goptim.SGDOptions{LR: 1e-3, Momentum: 0.9})
	require.NoError(t, err)
	opt.Storage = goptim.Storage{Rounding: goptim.RoundKahan, StateType: goptim.StateFloat32}
	for range 3 {
		require.NoError(t, opt.Step())
	}
	opt.LR, opt.Momentum = 0, 0
	state := func() map[string]safetensors.Tensor {
		var b bytes.Buffer
		require.NoError(t, goptim.WriteState(&b, opt))
		f, err := safetensors.Parse(b.Bytes())
		require.NoError(t, err)
		all := map[string]safetensors.Tensor{}
		for _, tensor := range f.Tensors {
			all[tensor.Name] = tensor
		}
		return all
	}
	halves := func(tensor safetensors.Tensor) (all []float32) {
		for i := 0; i < len(tensor.Data); i += 2 {
			all = append(all, goptim.BFloat16(binary.LittleEndian.Uint16(tensor.Data[i:])).Float32())
		}
		return all
	}
	rest := halves(state()["state.0.compensation"])
	require.NotEqual(t, make([]float32, 50), rest)
	opt.Storage = goptim.Storage{MasterWeights: true}
	require.NoError(t, opt.Step())
	require.NotContains(t, state(), "state.0.compensation")
	master := make([]float32, 50)
	_, err = binary.Decode(state()["state.0.master_param"].Data, binary.LittleEndian, master)
	require.NoError(t, err)
	for i, x := range p.Value {
		assert.Equal(t, x.Float32()+rest[i], master[i])
	}
	opt.Storage = goptim.Storage{Rounding: goptim.RoundKahan}
	require.NoError(t, opt.Step())
	require.NotContains(t, state(), "state.0.master_param")
	assert.Equal(t, rest, halves(state()["state.0.compensation"]))
	opt.Storage = goptim.Storage{}
	opt.Momentum = 0.9
	require.NoError(t, opt.Step())
	require.Len(t, state(), 1)
	assert.Equal(t, "BF16", state()["state.0.momentum_buffer"].DType)
}

// TestStorageOfMuon compares master copies with float32 parameters, and a run with one that goes on from a file.
func TestStorageOfMuon(t *testing.T) {
	p := ofBFloat16(35)
	p.Shape = []int{7, 5}
	wide := &goptim.Param[float32]{Value: make([]float32, 35), Grad: make([]float32, 35), Shape: p.Shape}
	for i := range p.Value {
		wide.Value[i], wide.Grad[i] = p.Value[i].Float32(), p.Grad[i].Float32()
	}
	o := goptim.MuonOptions{LR: 0.1, WeightDecay: 0.1, Nesterov: true}
	make16 := func(p *goptim.Param[goptim.BFloat16], s goptim.Storage) *goptim.Muon[goptim.BFloat16] {
		opt, err := goptim.NewMuon([]*goptim.Param[goptim.BFloat16]{p}, o)
		require.NoError(t, err)
		opt.Storage = s
		return opt
	}
	opt := make16(p, goptim.Storage{MasterWeights: true, StateType: goptim.StateFloat32})
	exact, err := goptim.NewMuon([]*goptim.Param[float32]{wide}, o)
	require.NoError(t, err)
	for range 3 {
		require.NoError(t, opt.Step())
		require.NoError(t, exact.Step())
		for i, x := range p.Value {
			require.Equal(t, goptim.BFloat16FromFloat32(wide.Value[i]), x)
		}
	}
	for _, s := range []goptim.Storage{
		{Rounding: goptim.RoundKahan}, {Rounding: goptim.RoundStochastic, Seed: 5, StateType: goptim.StateFloat32}, {MasterWeights: true},
	} {
		p := ofBFloat16(35)
		p.Shape = []int{7, 5}
		opt := make16(p, s)
		require.NoError(t, opt.Step())
		require.NoError(t, opt.Step())
		var file bytes.Buffer
		require.NoError(t, goptim.WriteState(&file, opt))
		again := ofBFloat16(35)
		again.Shape = p.Shape
		copy(again.Value, p.Value)
		other := make16(again, goptim.Storage{})
		require.NoError(t, goptim.ReadState(&file, other))
		assert.Equal(t, s, other.Storage)
		before := append([]goptim.BFloat16{}, p.Value...)
		require.NoError(t, opt.Step())
		require.NoError(t, other.Step())
		assert.Equal(t, p.Value, again.Value)
		assert.NotEqual(t, before, p.Value)
	}
}

// TestSparseStorageChanges changes the storage between steps, and goes on from a file.
func TestSparseStorageChanges(t *testing.T) {
	make16 := func() (*goptim.SparseParam[goptim.BFloat16], *goptim.SparseAdagrad[goptim.BFloat16]) {
		p := &goptim.SparseParam[goptim.BFloat16]{Value: ofBFloat16(12).Value, Width: 3, Indices: []int64{2, 0, 2}, Grad: ofBFloat16(9).Grad}
		opt, err := goptim.NewSparseAdagrad([]*goptim.SparseParam[goptim.BFloat16]{p}, goptim.AdagradOptions{InitialAccumulatorValue: 0.3})
		require.NoError(t, err)
		return p, opt
	}
	for _, s := range []goptim.Storage{
		{}, {Rounding: goptim.RoundKahan}, {Rounding: goptim.RoundStochastic, Seed: 5, StateType: goptim.StateFloat32}, {MasterWeights: true},
	} {
		p, opt := make16()
		opt.Rounding = goptim.RoundKahan
		require.NoError(t, opt.Step())
		opt.Storage = s
		require.NoError(t, opt.Step())
		var file bytes.Buffer
		require.NoError(t, goptim.WriteState(&file, opt))
		again, other := make16()
		copy(again.Value, p.Value)
		require.NoError(t, goptim.ReadState(&file, other))
		assert.Equal(t, s, other.Storage)
		before := append([]goptim.BFloat16{}, p.Value...)
		require.NoError(t, opt.Step())
		require.NoError(t, other.Step())
		assert.Equal(t, p.Value, again.Value)
		assert.NotEqual(t, before, p.Value)
		before = append(before[:0], p.Value...)
		opt.Storage = goptim.Storage{Rounding: goptim.RoundKahan, MasterWeights: true}
		err := opt.Step()
		require.ErrorIs(t, err, goptim.ErrOption)
		require.ErrorContains(t, err, "SparseAdagrad: Rounding is kahan with MasterWeights, expected RoundNearest")
		assert.Equal(t, before, p.Value)
	}
}

func TestStorageIsChecked(t *testing.T) {
	p := ofBFloat16(5)
	opt, err := goptim.NewAdam([]*goptim.Param[goptim.BFloat16]{p}, goptim.AdamOptions{})
	require.NoError(t, err)
	for says, s := range map[string]goptim.Storage{
		"StateType is 3, expected StateAsParam":                       {StateType: 3},
		"Rounding is 3, expected RoundNearest":                        {Rounding: 3},
		"Rounding is kahan with MasterWeights, expected RoundNearest": {Rounding: goptim.RoundKahan, MasterWeights: true},
	} {
		opt.Storage = s
		err := opt.Step()
		require.ErrorIs(t, err, goptim.ErrOption)
		require.ErrorContains(t, err, "goptim: Adam: "+says)
		require.Equal(t, ofBFloat16(5).Value, p.Value)
	}
	opt.Storage = goptim.Storage{Rounding: goptim.RoundKahan}
	var file bytes.Buffer
	require.NoError(t, goptim.WriteState(&file, opt))
	for says, change := range map[string][2]string{
		`rounding is "up"`: {`"kahan"`, `"up"`},
		`rounding is 7`:    {`"kahan"`, `7`},
	} {
		r, err := safetensors.Parse(file.Bytes())
		require.NoError(t, err)
		r.Metadata["param_groups"] = strings.Replace(r.Metadata["param_groups"], change[0], change[1], 1)
		opt.Storage = goptim.Storage{}
		require.ErrorContains(t, goptim.ReadState(bytes.NewReader(fileOf(t, r)), opt), says)
	}
}

// TestGroupsHaveDifferentNoise steps equal parameters in two groups.
func TestGroupsHaveDifferentNoise(t *testing.T) {
	var optimizers []goptim.Optimizer
	var params []*goptim.Param[goptim.BFloat16]
	for range 2 {
		p := ofBFloat16(500)
		opt, err := goptim.NewSGD([]*goptim.Param[goptim.BFloat16]{p}, goptim.SGDOptions{LR: 1e-3})
		require.NoError(t, err)
		opt.Rounding, opt.Seed = goptim.RoundStochastic, 1
		optimizers, params = append(optimizers, opt), append(params, p)
	}
	groups, err := goptim.NewGroups(optimizers...)
	require.NoError(t, err)
	require.NoError(t, groups.Step())
	assert.NotEqual(t, params[0].Value, params[1].Value)
}

// TestStochasticAverages compares averages with a plain loop.
func TestStochasticAverages(t *testing.T) {
	averages, params := []*goptim.Param[goptim.BFloat16]{ofBFloat16(3), ofBFloat16(1003)}, []*goptim.Param[goptim.BFloat16]{ofBFloat16(3), ofBFloat16(1003)}
	for _, p := range params {
		copy(p.Value, p.Grad)
	}
	o := goptim.EMAOptions{Decay: 0.9, Rounding: goptim.RoundStochastic, Seed: 9, Step: 4, Workers: 2}
	var want [][]goptim.BFloat16
	for i, a := range averages {
		noise := kernel.NoiseOf(9, 4, uint32(i))
		var all []goptim.BFloat16
		for k := range a.Value {
			x, y := a.Value[k].Float32(), params[i].Value[k].Float32()
			// The product of numbers of 24 and 8 bits is exact in float64.
			x = float32(float64(float32(1-o.Decay))*float64(y-x) + float64(x))
			all = append(all, goptim.BFloat16(kernel.StochasticBFloat16(x, noise.At(k))))
		}
		want = append(want, all)
	}
	require.NoError(t, goptim.EMA(averages, params, o))
	for i := range averages {
		assert.Equal(t, want[i], averages[i].Value)
	}
	for says, change := range map[string]func(o *goptim.EMAOptions){
		"EMA: Rounding is 2, expected RoundNearest or RoundStochastic":             func(o *goptim.EMAOptions) { o.Rounding = goptim.RoundKahan },
		"EMA: Rounding is stochastic with the form EMAMulAdd, expected EMALerp":    func(o *goptim.EMAOptions) { o.Form = goptim.EMAMulAdd },
		"EMA: Step is 0, expected at least 1 with RoundStochastic: invalid option": func(o *goptim.EMAOptions) { o.Step = 0 },
	} {
		o := o
		change(&o)
		err := goptim.EMA(averages, params, o)
		require.ErrorIs(t, err, goptim.ErrOption)
		require.ErrorContains(t, err, says)
		assert.Equal(t, want[1], averages[1].Value)
	}
	wide := []*goptim.Param[float32]{{Value: []float32{1, 2}}}
	require.NoError(t, goptim.EMA(wide, []*goptim.Param[float32]{{Value: []float32{2, 3}}}, o))
}
