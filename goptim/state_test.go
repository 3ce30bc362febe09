package goptim_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log"
	"maps"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/goptim/goptim/goptim"
	"github.com/goptim/goptim/goptim/internal/safetensors"
)

// A subject is an optimizer and its parameters, with gradients for any number of steps.
type subject[T goptim.Float] struct {
	goptim.Stateful
	params []*goptim.Param[T]
	sparse []*goptim.SparseParam[T]
	steps  int
	step   func() error
}

// do performs the given number of steps.
func (s *subject[T]) do(t testing.TB, times int) {
	for range times {
		require.NoError(t, s.try())
	}
}

// try performs one step. The gradients depend on the step's number.
func (s *subject[T]) try() error {
	s.steps++
	wave := func(i int) T { return T(math.Sin(float64(i*i + 3*s.steps))) }
	for k, p := range s.params {
		if k == 1 && s.steps == 1 {
			continue // so that its state is initialized at a different step than the others'
		}
		p.Grad = make([]T, len(p.Value))
		for i := range p.Grad {
			p.Grad[i] = wave(i + k)
		}
	}
	for _, p := range s.sparse {
		p.Indices = []int64{1, int64(s.steps) % 4, 1}
		p.Grad = make([]T, 3*p.Width)
		for i := range p.Grad {
			p.Grad[i] = wave(i)
		}
	}
	return s.step()
}

func (s *subject[T]) values() (all [][]T) {
	for _, p := range s.params {
		all = append(all, slices.Clone(p.Value))
	}
	for _, p := range s.sparse {
		all = append(all, slices.Clone(p.Value))
	}
	return all
}

// continueFrom sets the parameters to another subject's values.
func (s *subject[T]) continueFrom(other *subject[T]) {
	s.steps = other.steps
	for i, v := range other.values() {
		if i < len(s.params) {
			copy(s.params[i].Value, v)
		} else {
			copy(s.sparse[i-len(s.params)].Value, v)
		}
	}
}

// subjects returns functions that build every optimizer, with unusual options or, if unusual is false, without options.
func subjects[T goptim.Float]() map[string]func(t testing.TB, unusual bool) *subject[T] {
	all := map[string]func(t testing.TB, unusual bool) *subject[T]{}
	dense := func(name string, shapes [][]int, build func(p []*goptim.Param[T], unusual bool) (goptim.Optimizer, error)) {
		all[name] = func(t testing.TB, unusual bool) *subject[T] {
			s := new(subject[T])
			for i, shape := range shapes {
				n := 1
				for _, size := range shape {
					n *= size
				}
				p := params[T](n)[0]
				p.Name, p.Shape, p.Grad = fmt.Sprintf("layer.%d", i), shape, nil
				s.params = append(s.params, p)
			}
			o, err := build(s.params, unusual)
			require.NoError(t, err)
			s.Stateful, s.step = o, o.Step
			return s
		}
	}
	some, matrices := [][]int{{2, 3}, {2}, {0}, {2, 2, 2}, nil}, [][]int{{2, 3}, {4, 1}}
	lr := func(unusual bool) float64 {
		if unusual {
			return .5
		}
		return 0
	}
	for _, c := range constructors[T]() {
		shapes := some
		if c.name == "Muon" {
			shapes = matrices
		}
		dense(c.name, shapes, func(p []*goptim.Param[T], unusual bool) (goptim.Optimizer, error) {
			if unusual {
				return c.with(p, c.unusual)
			}
			return c.with(p, c.usual)
		})
	}
	dense("Groups", matrices, func(p []*goptim.Param[T], unusual bool) (goptim.Optimizer, error) {
		a, err := goptim.NewMuon(p[:1], goptim.MuonOptions{LR: lr(unusual)})
		if err != nil {
			return nil, err
		}
		b, err := goptim.NewRAdam(p[1:], goptim.RAdamOptions{LR: lr(unusual)})
		if err != nil {
			return nil, err
		}
		return goptim.NewGroups(a, b)
	})
	for _, c := range sparseConstructors[T]() {
		all[c.name] = func(t testing.TB, unusual bool) *subject[T] {
			s := &subject[T]{sparse: []*goptim.SparseParam[T]{{Name: "words", Value: params[T](12)[0].Value, Width: 3}}}
			options := c.usual
			if unusual {
				options = c.unusual
			}
			o, err := c.with(s.sparse, options)
			require.NoError(t, err)
			s.Stateful, s.step = o, o.Step
			return s
		}
	}
	all["LBFGS"] = func(t testing.TB, unusual bool) *subject[T] {
		s := &subject[T]{params: valleyParams[T](5, 3)}
		options := goptim.LBFGSOptions{MaxIter: 2, LR: lr(unusual)}
		if unusual {
			options.StrongWolfe, options.HistorySize = true, 3
		}
		o, err := goptim.NewLBFGS(s.params, options)
		require.NoError(t, err)
		s.Stateful = o
		s.step = func() error {
			_, err := o.Step(func() (float64, error) {
				for _, p := range s.params {
					p.Grad = make([]T, len(p.Value))
				}
				return valley(s.params)
			})
			return err
		}
		return s
	}
	return all
}

func encoded(t testing.TB, s goptim.Stateful) []byte {
	b, err := s.MarshalBinary()
	require.NoError(t, err)
	return b
}

func TestStateGoesOnWithTheSameBits(t *testing.T) {
	t.Run("float32", testStateGoesOn[float32])
	t.Run("float64", testStateGoesOn[float64])
}

func testStateGoesOn[T goptim.Float](t *testing.T) {
	for name, build := range subjects[T]() {
		t.Run(name, func(t *testing.T) {
			for before := range 4 {
				first, binary, file := build(t, true), build(t, false), build(t, false)
				first.do(t, before)
				binary.do(t, before%2)
				for _, s := range []*subject[T]{binary, file} {
					s.continueFrom(first)
				}
				require.NoError(t, binary.UnmarshalBinary(encoded(t, first)))
				var written bytes.Buffer
				require.NoError(t, goptim.WriteState(&written, first))
				require.NoError(t, goptim.ReadState(&written, file))
				for range 3 {
					first.do(t, 1)
					binary.do(t, 1)
					file.do(t, 1)
					require.Equal(t, first.values(), binary.values())
					require.Equal(t, first.values(), file.values())
				}
				assert.Equal(t, encoded(t, first), encoded(t, binary))
			}
		})
	}
}

func TestDamagedStateChangesNothing(t *testing.T) {
	every := subjects[float32]()
	for name, build := range every {
		t.Run(name, func(t *testing.T) {
			whole, into := build(t, true), build(t, false)
			whole.do(t, 2)
			into.do(t, 1)
			before, state := encoded(t, into), encoded(t, whole)
			refuse := func(b []byte, what string) {
				require.ErrorIs(t, into.UnmarshalBinary(b), goptim.ErrState, what)
			}
			for n := range state {
				refuse(state[:n], "truncated")
			}
			refuse(append(slices.Clone(state), 0), "longer")
			for i := range state {
				state[i] ^= 1 << (i % 8)
				refuse(state, "a bit flipped")
				state[i] ^= 1 << (i % 8)
			}
			for other, build := range every {
				pair := [2]string{min(name, other), max(name, other)}
				compatible := [][2]string{{"AMSGrad", "Adam"}, {"AMSGrad", "AdamW"}, {"Adam", "AdamW"}, {"OptimiAdam", "OptimiAdamW"}}
				if name != other && !slices.Contains(compatible, pair) {
					s := build(t, true)
					s.do(t, 2)
					refuse(encoded(t, s), "that of "+other)
					var file bytes.Buffer
					require.NoError(t, goptim.WriteState(&file, s))
					require.ErrorIs(t, goptim.ReadState(&file, into), goptim.ErrState, other)
				}
			}
			if name != "SparseSGD" { // SparseSGD has no state and thus no element type
				wide := subjects[float64]()[name](t, true)
				wide.do(t, 2)
				refuse(encoded(t, wide), "float64")
			}
			assert.Equal(t, before, encoded(t, into))
			require.NoError(t, into.UnmarshalBinary(state))
			assert.Equal(t, state, encoded(t, into))
		})
	}
}

func TestStateSaysWhatIsWrong(t *testing.T) {
	p := params[float32](4, 3)
	p[0].Name, p[1].Name = "weight", "bias"
	opt, err := goptim.NewAdam(p, goptim.AdamOptions{})
	require.NoError(t, err)
	require.NoError(t, opt.Step())
	var file bytes.Buffer
	require.NoError(t, goptim.WriteState(&file, opt))
	state := file.Bytes()
	into := func(sizes []int, names ...string) error {
		p := params[float32](sizes...)
		for i, n := range names {
			p[i].Name = n
		}
		o, err := goptim.NewAdam(p, goptim.AdamOptions{})
		require.NoError(t, err)
		return goptim.ReadState(bytes.NewReader(state), o)
	}
	require.NoError(t, into([]int{4, 3}, "weight", "bias"))
	require.NoError(t, into([]int{3, 4}, "bias", "weight"), "in another order")
	require.ErrorContains(t, into([]int{4, 5}, "weight", "bias"), "group 0: parameter bias: exp_avg is of shape [3], expected 5 elements")
	require.ErrorContains(t, into([]int{4, 3}, "weight"), `group 0: parameters ["weight" "bias"], expected ["weight" "1"]`)
	require.ErrorContains(t, into([]int{4}, "weight"), "group 0: parameters")
	require.ErrorContains(t, into([]int{4, 3}, "bias", "bias"), "two parameters have the name bias")
	replaced := func(old, new string) error {
		require.Len(t, new, len(old))
		require.Contains(t, string(state), old)
		return goptim.ReadState(bytes.NewReader(bytes.Replace(state, []byte(old), []byte(new), 1)), opt)
	}
	for old, c := range map[string]struct{ new, says string }{
		`goptim_state`:                                {`goptim_stale`, "not the state of an optimizer"},
		`"goptim_state":"1"`:                          {`"goptim_state":"2"`, "version 2, expected 1"},
		`\"lr\":0.001`:                                {`\"lr\":-1.00`, "Adam: LR is -1, expected at least 0"},
		`\"lr\":0.001,`:                               {`\"le\":0.001,`, "Adam: no lr"},
		`\"betas\":[0.9,0.999]`:                       {`\"betas\":[0.9,1,0.9]`, "Adam: betas: 3 numbers, expected 2"},
		`state.bias.exp_avg_sq`:                       {`state.bias.exp_avg_sp`, "parameter bias: no exp_avg_sq"},
		`state.weight.exp_avg_sq`:                     {`state.wehgit.exp_avg_sq`, "the state of \"wehgit\", which is no parameter"},
		`\"optimizer\":\"Adam\"`:                      {`\"optimizer\":\"SGDs\"`, "the state of SGDs, expected that of Adam"},
		`{\"optimizer\"`:                              {`0\"optimizer\"`, "invalid character"},
		`"state.bias.step":{"dtype":"F32","shape":[]`: {`"state.bias.step":{"dtype":"I32","shape":[]`, "step is of I32, expected a number"},
	} {
		err := replaced(old, c.new)
		require.ErrorIs(t, err, goptim.ErrState)
		require.ErrorContains(t, err, c.says)
	}
	half := slices.Clone(state)
	at := bytes.Index(half, []byte{0, 0, 0x80, 0x3f}) // a step of 1
	binary.LittleEndian.PutUint32(half[at:], math.Float32bits(.5))
	require.ErrorContains(t, goptim.ReadState(bytes.NewReader(half), opt), "step is 0.5, expected a count")

	p[0].Name = "bias"
	require.ErrorIs(t, goptim.WriteState(new(bytes.Buffer), opt), goptim.ErrParam)
	p[0].Name = "\xff"
	require.ErrorIs(t, goptim.WriteState(new(bytes.Buffer), opt), goptim.ErrParam)
	data, err := opt.MarshalBinary()
	require.NoError(t, err, "which does without names")
	n := len(data) - len("goptim\x00\x01") - 8 - 32 // without the envelope, the length and the checksum
	require.ErrorContains(t, opt.UnmarshalBinary(append(data, 0)), fmt.Sprintf(": %d bytes, expected %d", n+1, n))
	require.ErrorContains(t, opt.UnmarshalBinary([]byte("goptim\x00\x02"+string(make([]byte, 50)))), "version 2, expected 1")
}

// edited returns a state file in which one tensor is replaced.
func edited(t *testing.T, file []byte, name, dtype string, number any) []byte {
	f, err := safetensors.Parse(file)
	require.NoError(t, err)
	at := slices.IndexFunc(f.Tensors, func(tensor safetensors.Tensor) bool { return tensor.Name == name })
	require.GreaterOrEqual(t, at, 0)
	data, err := binary.Append(nil, binary.LittleEndian, number)
	require.NoError(t, err)
	f.Tensors[at] = safetensors.Tensor{Name: name, DType: dtype, Data: data}
	return fileOf(t, f)
}

func TestNumbersThatAreNoCounts(t *testing.T) {
	for name, step := range map[string]string{"Adam": "state.layer.0.step", "SparseAdam": "state.words.step", "LBFGS": "state.0.n_iter"} {
		s := subjects[float32]()[name](t, true)
		s.do(t, 2)
		var file bytes.Buffer
		require.NoError(t, goptim.WriteState(&file, s))
		before := encoded(t, s)
		for says, number := range map[string]any{
			"step is -1, expected a count":              int64(-1),
			"step is NaN, expected a count":             math.NaN(),
			"step is +Inf, expected a count":            math.Inf(1),
			"step is 0.5, expected a count":             float32(.5),
			"step is 1e+16, expected a count":           1e16,
			"step is 9007199254740993":                  int64(1<<53 + 1),
			"step is 1.7000001e+07, expected a float32": 17e6 + 1,
		} {
			dtype := map[string]string{"int64": "I64", "float32": "F32", "float64": "F64"}[fmt.Sprintf("%T", number)]
			err := goptim.ReadState(bytes.NewReader(edited(t, file.Bytes(), step, dtype, number)), s)
			if name != "Adam" && number == 17e6+1 { // only Adam of these counts steps in float32
				require.NoError(t, err)
				require.NoError(t, goptim.ReadState(bytes.NewReader(file.Bytes()), s))
				continue
			}
			require.ErrorIs(t, err, goptim.ErrState)
			if name == "Adam" {
				require.ErrorContains(t, err, says)
			}
			require.Equal(t, before, encoded(t, s))
		}
	}
}

// TestCountsBeyondFloat32 checks that counts are kept in float64 if they are too large for float32, where torch's count
// would no longer increase.
func TestCountsBeyondFloat32(t *testing.T) {
	s := subjects[float32]()["SparseAdagrad"](t, true)
	s.do(t, 1)
	var file, again bytes.Buffer
	require.NoError(t, goptim.WriteState(&file, s))
	long := edited(t, file.Bytes(), "state.words.step", "F64", 17e6+1)
	require.NoError(t, goptim.ReadState(bytes.NewReader(long), s))
	require.NoError(t, goptim.WriteState(&again, s))
	assert.Equal(t, long, again.Bytes())
}

// TestShapesOfStates checks that the states of a sparse optimizer have the same shape as in torch: rows by width.
func TestShapesOfStates(t *testing.T) {
	for _, c := range []struct {
		width, length int
		shape         []int
	}{{1, 5, []int{5, 1}}, {2, 6, []int{3, 2}}, {6, 6, []int{1, 6}}} {
		p := &goptim.SparseParam[float32]{Name: "words", Value: make([]float32, c.length), Width: c.width}
		o, err := goptim.NewSparseAdam([]*goptim.SparseParam[float32]{p}, goptim.SparseAdamOptions{})
		require.NoError(t, err)
		p.Indices, p.Grad = []int64{0}, make([]float32, c.width)
		require.NoError(t, o.Step())
		var file bytes.Buffer
		require.NoError(t, goptim.WriteState(&file, o))
		f, err := safetensors.Parse(file.Bytes())
		require.NoError(t, err)
		shapes := map[string][]int{}
		for _, tensor := range f.Tensors {
			shapes[tensor.Name] = tensor.Shape
		}
		assert.Equal(t, c.shape, shapes["state.words.exp_avg"], "%+v", c)
	}
}

func TestStateWithAKeyThatIsNotKnown(t *testing.T) {
	for name, key := range map[string]string{"Adam": "state.layer.0.more", "SparseAdam": "state.words.more", "Muon": "state.layer.1.more", "LBFGS": "state.1.more"} {
		s := subjects[float32]()[name](t, true)
		s.do(t, 2)
		var file bytes.Buffer
		require.NoError(t, goptim.WriteState(&file, s))
		f, err := safetensors.Parse(file.Bytes())
		require.NoError(t, err)
		f.Tensors = append(f.Tensors, safetensors.Tensor{Name: key, DType: "U8", Shape: []int{1}, Data: []byte{1}})
		require.ErrorContains(t, goptim.ReadState(bytes.NewReader(fileOf(t, f)), s), "more is not known", name)
	}
}

// TestStateOfAnotherVersionOfTorch loads a file that lacks some of the optimizer's flags. These flags must not change.
func TestStateOfAnotherVersionOfTorch(t *testing.T) {
	p := params[float32](4)
	from, err := goptim.NewAdam(p, goptim.AdamOptions{LR: .1})
	require.NoError(t, err)
	var file bytes.Buffer
	require.NoError(t, goptim.WriteState(&file, from))
	f, err := safetensors.Parse(file.Bytes())
	require.NoError(t, err)
	for _, without := range []string{`,"maximize":false`, `,"decoupled_weight_decay":false`} {
		require.Contains(t, f.Metadata["param_groups"], without)
		f.Metadata["param_groups"] = strings.Replace(f.Metadata["param_groups"], without, "", 1)
	}
	into, err := goptim.NewAdam(p, goptim.AdamOptions{Maximize: true})
	require.NoError(t, err)
	require.NoError(t, goptim.ReadState(bytes.NewReader(fileOf(t, f)), into))
	assert.Equal(t, [2]any{.1, true}, [2]any{into.LR, into.Maximize})
}

// TestStateThatTheNextStepMakes saves an optimizer whose options require a state that no step has created yet.
func TestStateThatTheNextStepMakes(t *testing.T) {
	build := func() (*goptim.Param[float32], *goptim.Adam[float32]) {
		p := params[float32](4)
		opt, err := goptim.NewAdam(p, goptim.AdamOptions{})
		require.NoError(t, err)
		require.NoError(t, opt.Step())
		return p[0], opt
	}
	p, opt := build()
	opt.AMSGrad = true
	q, other := build()
	require.NoError(t, other.UnmarshalBinary(encoded(t, opt)))
	require.NoError(t, opt.Step())
	require.NoError(t, other.Step())
	assert.Equal(t, p.Value, q.Value)
	assert.Equal(t, encoded(t, opt), encoded(t, other))
}

// TestLBFGSTakesAStateOfTheSameOrder checks that LBFGS rejects a state whose parameters have a different order, because
// its vectors contain the parameters in order.
func TestLBFGSTakesAStateOfTheSameOrder(t *testing.T) {
	build := func(names ...string) *goptim.LBFGS[float32] {
		p := valleyParams[float32](3, 3)
		p[0].Name, p[1].Name = names[0], names[1]
		opt, err := goptim.NewLBFGS(p, goptim.LBFGSOptions{})
		require.NoError(t, err)
		return opt
	}
	var file bytes.Buffer
	require.NoError(t, goptim.WriteState(&file, build("a", "b")))
	err := goptim.ReadState(bytes.NewReader(file.Bytes()), build("b", "a"))
	require.ErrorContains(t, err, `group 0: parameters ["a" "b"], expected ["b" "a"]`)
	require.NoError(t, goptim.ReadState(&file, build("a", "b")))
}

// TestGroupsTakeAStateTogetherOrNot loads states for two groups, of which only the first matches. Neither group must
// change.
func TestGroupsTakeAStateTogetherOrNot(t *testing.T) {
	build := func(lr float64, sizes ...int) *goptim.Groups {
		p := params[float32](sizes...)
		a, err := goptim.NewAdam(p[:1], goptim.AdamOptions{LR: lr})
		require.NoError(t, err)
		b, err := goptim.NewAdam(p[1:], goptim.AdamOptions{LR: lr})
		require.NoError(t, err)
		g, err := goptim.NewGroups(a, b)
		require.NoError(t, err)
		require.NoError(t, g.Step())
		return g
	}
	from, into := build(.1, 4, 5), build(.2, 4, 6)
	before := encoded(t, into)
	require.ErrorIs(t, into.UnmarshalBinary(encoded(t, from)), goptim.ErrState)
	assert.Equal(t, before, encoded(t, into))
	var file bytes.Buffer
	require.NoError(t, goptim.WriteState(&file, from.Optimizers()[0], from.Optimizers()[1]))
	err := goptim.ReadState(&file, into.Optimizers()[0], into.Optimizers()[1])
	require.ErrorContains(t, err, "group 1: parameter 1: exp_avg is of shape [5], expected 6 elements")
	assert.Equal(t, before, encoded(t, into))
}

// TestStateOfWhatStepRefuses saves optimizers whose parameters have changed since the last step. The file must contain a
// state that can be loaded, or nothing.
func TestStateOfWhatStepRefuses(t *testing.T) {
	for name, build := range subjects[float32]() {
		s := build(t, true)
		s.do(t, 2)
		state := encoded(t, s)
		for _, p := range s.params {
			p.Shape = []int{-1, len(p.Value) + 1}
		}
		for _, p := range s.sparse {
			p.Width = 0
		}
		saved, err := s.MarshalBinary()
		require.NoError(t, err, name)
		require.Error(t, errors.Join(s.UnmarshalBinary(state[1:]), s.UnmarshalBinary(nil)))
		into := build(t, false)
		require.NoError(t, into.UnmarshalBinary(saved), name)
		assert.Equal(t, state, encoded(t, into), name)

		if name == "LBFGS" || name == "SparseSGD" || name == "Adafactor" { // whose states do not have the shape of the value
			continue
		}
		s = build(t, true)
		s.do(t, 2)
		for _, p := range s.params {
			p.Value, p.Shape = append(p.Value, 0), nil
		}
		for _, p := range s.sparse {
			p.Value = p.Value[p.Width:]
		}
		_, err = s.MarshalBinary()
		require.ErrorIs(t, err, goptim.ErrParam, name)
		var file bytes.Buffer
		require.ErrorIs(t, goptim.WriteState(&file, s), goptim.ErrParam, name)
		assert.Zero(t, file.Len())
	}
	for _, none := range []goptim.Stateful{nil, (*goptim.Adam[float32])(nil), (*goptim.Groups)(nil)} {
		require.ErrorIs(t, goptim.WriteState(new(bytes.Buffer), none), goptim.ErrParam)
		require.ErrorIs(t, goptim.ReadState(new(bytes.Buffer), none), goptim.ErrState)
	}
}

// TestDamagedGroups edits the description of a group and checks the error. A case is a list of edits and the expected
// message.
func TestDamagedGroups(t *testing.T) {
	every := subjects[float32]()
	for _, c := range []struct{ optimizer, old, new, says string }{
		{"Adam", `"lr":0.1`, `"lr":null`, "Adam: lr: null"},
		{"Adam", `"lr":0.1`, `"lr":"nan"`, `Adam: lr: "nan", expected a number`},
		{"Adam", `"lr":0.1`, `"lr":"0.1"`, `Adam: lr: "0.1", expected a number`},
		{"Adam", `"lr":0.1`, `"lr":true`, "Adam: lr: true, expected a number"},
		{"Adam", `"lr":0.1`, `"lr":1e999`, "Adam: lr: 1e999, expected a number"},
		{"Adam", `"lr":0.1`, `"lr":0.1,"lr":0.2`, `two members "lr"`},
		{"Adam", `"lr":0.1`, `"lr":NaN`, "param_groups"},
		{"Adam", `"lr":0.1`, `"lr":"-inf"`, "Adam: LR is -Inf, expected at least 0"},
		{"Adam", `"betas":[0.7,0.8]`, `"betas":[null,0.8]`, "Adam: betas: null in a list"},
		{"Adam", `"betas":[0.7,0.8]`, `"betas":["nan",0.8]`, `Adam: betas: "nan", expected a number`},
		{"Adam", `"betas":[0.7,0.8]`, `"betas":{"0":0.7}`, "Adam: betas"},
		{"Adam", `"amsgrad":false`, `"amsgrad":null`, "Adam: amsgrad: null"},
		{"Adam", `"amsgrad":false`, `"amsgrad":"x"`, "Adam: amsgrad"},
		{"Adam", `"amsgrad":false`, `"amsgrad":1`, "Adam: amsgrad"},
		{"Adam", `"optimizer":"Adam"`, `"optimizer":null`, "group 0: optimizer: null"},
		{"Adam", `"optimizer":"Adam"`, `"optimizer":["Adam"]`, "group 0: optimizer: json"},
		{"Adam", `"optimizer":"Adam",`, ``, "group 0: optimizer: unexpected end of JSON input"},
		{"Adam", `"params":["layer.0",`, `"params":[null,`, "group 0: params: null in a list"},
		{"Adam", `"params":["layer.0",`, `"params":["layer.1",`, "group 0: parameters"},
		{"Adam", `"params":["layer.0",`, `"params":["layer.0","layer.0",`, "group 0: parameters"},
		{"Adam", `[{"optimizer"`, `[null,{"optimizer"`, "param_groups: null in a list"},
		{"Adam", `[{"optimizer"`, `[3,{"optimizer"`, "param_groups: group 0: not an object"},
		{"Adam", `[{"optimizer"`, strings.Repeat("[", 20_000) + `{"optimizer"`, "param_groups"},
		{"LBFGS", `"history_size":3`, `"history_size":1`, "pairs of vectors, expected at most 1, its history_size"},
		{"LBFGS", `"history_size":3`, `"history_size":null`, "LBFGS: history_size: null"},
		{"LBFGS", `"history_size":3`, `"history_size":0`, "HistorySize is 0, expected at least 1"},
		{"LBFGS", `"tolerance_grad":1e-07`, `"tolerance_grad":"nan"`, "LBFGS: tolerance_grad"},
		{"Muon", `"ns_steps":2`, `"ns_steps":2.5`, "Muon: ns_steps"},
		{"Muon", `"adjust_lr_fn":"spectral_unclamped"`, `"adjust_lr_fn":"x"`, "Muon: adjust_lr_fn"},
	} {
		s := every[c.optimizer](t, true)
		s.do(t, 4)
		var file bytes.Buffer
		require.NoError(t, goptim.WriteState(&file, s))
		f, err := safetensors.Parse(file.Bytes())
		require.NoError(t, err)
		require.Contains(t, f.Metadata["param_groups"], c.old)
		f.Metadata["param_groups"] = strings.Replace(f.Metadata["param_groups"], c.old, c.new, 1)
		before := encoded(t, s)
		err = goptim.ReadState(bytes.NewReader(fileOf(t, f)), s)
		require.ErrorIs(t, err, goptim.ErrState, c.new)
		require.ErrorContains(t, err, c.says)
		require.Equal(t, before, encoded(t, s))
	}
	s := every["Adam"](t, true)
	for _, name := range []string{"state.", "state.step", "state..", "state.7"} {
		var file bytes.Buffer
		require.NoError(t, goptim.WriteState(&file, s))
		f, err := safetensors.Parse(file.Bytes())
		require.NoError(t, err)
		f.Tensors = append(f.Tensors, safetensors.Tensor{Name: name, DType: "U8", Shape: []int{1}, Data: []byte{1}})
		err = goptim.ReadState(bytes.NewReader(fileOf(t, f)), s)
		require.ErrorIs(t, err, goptim.ErrState)
		require.ErrorContains(t, err, "expected a parameter's name and a key")
	}
}

// oddValues replace values of a file in TestChangedFiles.
var oddValues = []string{"null", "true", "0", "-1", "0.5", "1e39", "1e400", `""`, `"x"`, `"nan"`, `"inf"`, `"F64"`, "[]", "{}", "[0.5,0.5]", "[null]"}

// changed returns a file with some changed bytes, or with a changed value in its header or its groups.
func changed(r *rand.Rand, file []byte) []byte {
	if r.IntN(2) == 0 {
		file = slices.Clone(file)
		for range 1 + r.IntN(4) {
			at := r.IntN(min(len(file), 1500))
			switch r.IntN(3) {
			case 0:
				file[at] ^= 1 << r.IntN(8)
			case 1:
				file[at] = `0123456789"{}[],:.-e`[r.IntN(20)]
			case 2:
				file = slices.Delete(file, at, min(len(file), at+1+r.IntN(20)))
			}
		}
		return file
	}
	n := 8 + int(binary.LittleEndian.Uint64(file))
	text := string(file[8:n])
	// A value follows a colon. The values of groups are in a string, where their quotes are escaped with backslashes.
	parts := strings.Split(text, ":")
	i := 1 + r.IntN(len(parts)-1)
	value := oddValues[r.IntN(len(oddValues))]
	rest := strings.IndexAny(parts[i], ",}")
	if strings.HasPrefix(parts[i], "[") {
		rest = strings.Index(parts[i], "]") + 1
	}
	if strings.Contains(parts[i], `\"`) {
		value = strings.ReplaceAll(value, `"`, `\"`)
	}
	parts[i] = value + parts[i][max(rest, 0):]
	text = strings.Join(parts, ":")
	return slices.Concat(binary.LittleEndian.AppendUint64(nil, uint64(len(text))), []byte(text), file[n:])
}

// TestChangedFiles changes files at random. If such a file can be read, the state can be written again; otherwise the
// optimizer has not changed. Every optimizer can then step, or its error names the option with which it cannot compute.
func TestChangedFiles(t *testing.T) {
	for name, build := range subjects[float32]() {
		r := rand.New(rand.NewPCG(1, 2))
		whole := build(t, true)
		whole.do(t, 2)
		var file bytes.Buffer
		require.NoError(t, goptim.WriteState(&file, whole))
		loaded := 0
		for i := range 300 {
			s := build(t, false)
			s.do(t, 1)
			before := encoded(t, s)
			if err := goptim.ReadState(bytes.NewReader(changed(r, file.Bytes())), s); err != nil {
				require.ErrorIs(t, err, goptim.ErrState)
				require.Equal(t, before, encoded(t, s), "%s %d", name, i)
			} else {
				loaded++
				require.NoError(t, goptim.WriteState(new(bytes.Buffer), s), "%s %d", name, i)
			}
			if name != "LBFGS" { // LBFGS may be unable to continue
				if err := s.try(); err != nil { // an option that float32 cannot represent
					require.ErrorIs(t, err, goptim.ErrOption, "%s %d", name, i)
				}
			}
		}
		assert.Greater(t, loaded, 0, name)
		assert.Less(t, loaded, 250, name)
	}
}

// FuzzReadState checks that no file causes a panic, either when it is read or at the next step.
func FuzzReadState(f *testing.F) {
	r := rand.New(rand.NewPCG(3, 4))
	every := subjects[float32]()
	names := slices.Sorted(maps.Keys(every))
	for i, name := range names {
		s := every[name](f, true)
		s.do(f, 2)
		var file bytes.Buffer
		require.NoError(f, goptim.WriteState(&file, s))
		f.Add(uint8(i), file.Bytes())
		f.Add(uint8(i+1), file.Bytes())
		f.Add(uint8(i), file.Bytes()[:file.Len()/2])
		for range 10 {
			f.Add(uint8(i), changed(r, file.Bytes()))
		}
	}
	f.Fuzz(func(t *testing.T, kind uint8, file []byte) {
		s := every[names[int(kind)%len(names)]](t, false)
		before := encoded(t, s)
		if err := goptim.ReadState(bytes.NewReader(file), s); err != nil {
			require.ErrorIs(t, err, goptim.ErrState)
			require.Equal(t, before, encoded(t, s))
			return
		}
		_ = s.step() // LBFGS may be unable to continue
		encoded(t, s)
	})
}

// FuzzOptions checks that no options cause a panic: they are either rejected or used.
func FuzzOptions(f *testing.F) {
	dense, sparse := constructors[float32](), sparseConstructors[float32]()
	for kind := range uint8(len(dense) + len(sparse) + 1) {
		for _, x := range []float64{0, 1e-3, 1, -1, math.Inf(1), math.NaN(), math.MaxFloat64, math.SmallestNonzeroFloat64} {
			f.Add(kind, x, .9, .99, x, x, 3, true)
		}
		f.Add(kind, .1, .9, .99, 1e-8, .1, -1, false)
		f.Add(kind, .1, .9, .99, 1e-8, .1, math.MaxInt, false)
	}
	f.Fuzz(func(t *testing.T, kind uint8, a, b, c, d, e float64, n int, flag bool) {
		p := params[float32](6, 3)
		p[0].Shape = []int{2, 3}
		rows := []*goptim.SparseParam[float32]{{Value: make([]float32, 6), Width: 2, Indices: []int64{1}, Grad: []float32{1, 2}}}
		edit := func(options any) { spread(reflect.ValueOf(options).Elem(), []float64{a, b, c, d, e}, n, flag) }
		var opt goptim.Optimizer
		var err error
		switch at := int(kind) % (len(dense) + len(sparse) + 1); {
		case at < len(dense):
			if dense[at].name == "Muon" {
				p = p[:1]
			}
			opt, err = dense[at].build(p, edit)
		case at < len(dense)+len(sparse):
			opt, err = sparse[at-len(dense)].build(rows, edit)
		default:
			var l *goptim.LBFGS[float32]
			l, err = goptim.NewLBFGS(p, goptim.LBFGSOptions{
				LR: a, MaxIter: min(n, 20), MaxEval: n, HistorySize: n, ToleranceGrad: b, ToleranceChange: d, StrongWolfe: flag})
			if err == nil {
				_, err = l.Step(func() (float64, error) { return valley(p) })
			}
			if err != nil && !assert.ErrorIs(t, err, goptim.ErrOption) {
				require.ErrorIs(t, err, goptim.ErrLineSearch)
			}
			return
		}
		if err != nil {
			require.ErrorIs(t, err, goptim.ErrOption)
			return
		}
		for range 2 {
			if err := opt.Step(); err != nil {
				var scalar *goptim.ScalarError
				require.ErrorAs(t, err, &scalar)
				require.ErrorIs(t, err, goptim.ErrOption)
			}
		}
		encoded(t, opt)
	})
}

// spread sets options: floats to the numbers in turn, Booleans to flag, and the others to n.
func spread(options reflect.Value, numbers []float64, n int, flag bool) {
	at := 0
	var fill func(v reflect.Value)
	fill = func(v reflect.Value) {
		switch v.Kind() {
		case reflect.Float64:
			v.SetFloat(numbers[at%len(numbers)])
			at++
		case reflect.Array:
			for i := range v.Len() {
				fill(v.Index(i))
			}
		case reflect.Struct:
			for i := range v.NumField() {
				fill(v.Field(i))
			}
		case reflect.Bool:
			v.SetBool(flag)
		default:
			v.SetInt(int64(n))
		}
	}
	fill(options)
}

// This program saves the state of a run and continues the run.
func ExampleWriteState() {
	w := &goptim.Param[float64]{Name: "w", Value: []float64{1, 2}, Grad: []float64{1, -1}}
	opt, err := goptim.NewAdamW([]*goptim.Param[float64]{w}, goptim.AdamOptions{LR: 0.5})
	if err != nil {
		log.Fatal(err)
	}
	if err := opt.Step(); err != nil {
		log.Fatal(err)
	}
	var file bytes.Buffer // or an os.File
	if err := goptim.WriteState(&file, opt); err != nil {
		log.Fatal(err)
	}

	resumed, err := goptim.NewAdamW([]*goptim.Param[float64]{w}, goptim.AdamOptions{})
	if err != nil {
		log.Fatal(err)
	}
	if err := goptim.ReadState(&file, resumed); err != nil {
		log.Fatal(err)
	}
	if err := resumed.Step(); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%.2f, LR %v\n", w.Value, resumed.LR)
	// Output: [0.00 3.00], LR 0.5
}
