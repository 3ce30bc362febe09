package goptim

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"unsafe"

	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/safetensors"
)

// Storage is how a step of any optimizer but LBFGS stores parameters of 16 bits and states. Its fields are those of the optimizer. The zero value is as in torch: states have the type of the parameter, and all are rounded to nearest even.
// They may change between steps. docs/half.md describes the results.
type Storage struct {
	// StateType is the type of the tensors in the states of parameters of float32, BFloat16 and Float16.
	StateType StateType
	// MasterWeights steps a float32 copy of each parameter of 16 bits, of which the parameter is the rounded value. An element of the
	// parameter that something else has written is stepped from its new value.
	MasterWeights bool
	// Rounding is how parameters of 16 bits are rounded. It cannot be combined with MasterWeights.
	Rounding Rounding
	// Seed selects the random numbers of RoundStochastic.
	Seed uint64
}

// A StateType is a type of states.
type StateType uint8

// The types of states.
const (
	StateAsParam StateType = iota
	StateFloat32
	StateBFloat16
)

// A Rounding is a way to round to 16 bits.
type Rounding uint8

const (
	// RoundNearest rounds to the nearest number, and a tie to the even one.
	RoundNearest Rounding = iota
	// RoundStochastic rounds up or down with the probabilities whose mean is exact.
	RoundStochastic
	// RoundKahan rounds to nearest, and keeps the rounding error in a state, also of 16 bits, which the next step adds again.
	RoundKahan
)

// The keys in files, and the names of values. Python's are the same.
const (
	stateTypeKey, masterWeightsKey, roundingKey, seedKey = "state_dtype", "master_weights", "rounding", "seed"
	masterKey, compensationKey                           = "master_param", "compensation"
)

var (
	stateTypes = [...]string{"", "float32", "bfloat16"}
	roundings  = [...]string{"nearest", "stochastic", "kahan"}
)

func (s *Storage) check(optimizer string) error {
	if int(s.StateType) >= len(stateTypes) {
		return fmt.Errorf("goptim: %s: StateType is %d, expected StateAsParam, StateFloat32 or StateBFloat16: %w", optimizer, s.StateType, ErrOption)
	}
	if int(s.Rounding) >= len(roundings) {
		return fmt.Errorf("goptim: %s: Rounding is %d, expected RoundNearest, RoundStochastic or RoundKahan: %w", optimizer, s.Rounding, ErrOption)
	}
	if s.MasterWeights && s.Rounding != RoundNearest {
		return fmt.Errorf("goptim: %s: Rounding is %s with MasterWeights, expected RoundNearest: %w", optimizer, roundings[s.Rounding], ErrOption)
	}
	return nil
}

// stateType returns the type of the states of a parameter.
func (s *Storage) stateType(of engine.DType) engine.DType {
	switch {
	case of == engine.Float64 || s.StateType == StateAsParam:
		return of
	case s.StateType == StateFloat32:
		return engine.Float32
	}
	return engine.BFloat16
}

// flags returns the flag of a row, and the type of the state MasterState that it requires.
func (s *Storage) flags(of engine.DType) (flag engine.Flags, extra engine.DType) {
	switch {
	case of != engine.BFloat16 && of != engine.Float16:
	case s.MasterWeights:
		return engine.Master, engine.Float32
	case s.Rounding == RoundKahan:
		return engine.Kahan, of
	case s.Rounding == RoundStochastic:
		return engine.Stochastic, engine.None
	}
	return 0, engine.None
}

// options returns what differs from the zero value, for saved states.
func (s *Storage) options() (all []option) {
	if s.StateType != 0 {
		all = append(all, option{key: stateTypeKey, value: stateTypes[s.StateType]})
	}
	if s.MasterWeights {
		all = append(all, option{key: masterWeightsKey, value: true})
	}
	if s.Rounding != 0 {
		all = append(all, option{key: roundingKey, value: roundings[s.Rounding]})
	}
	if s.Seed != 0 {
		all = append(all, option{key: seedKey, value: s.Seed})
	}
	return all
}

// load returns the saved options, and whether there are any. If s is not the zero value, it returns s.
func (s *Storage) load(g *savedGroup) (Storage, bool, error) {
	var saved Storage
	var err error
	decode := func(key string, to any) {
		if value, ok := g.options[key]; ok && !bytes.Equal(value, []byte("null")) {
			if wrong := json.Unmarshal(value, to); wrong != nil {
				err = errors.Join(err, fmt.Errorf("%s: %s is %s: %w", g.class, key, value, wrong))
			}
		}
	}
	var stateType, rounding string
	decode(stateTypeKey, &stateType)
	decode(masterWeightsKey, &saved.MasterWeights)
	decode(roundingKey, &rounding)
	decode(seedKey, &saved.Seed)
	saved.StateType = StateType(max(0, slices.Index(stateTypes[:], stateType)))
	saved.Rounding = Rounding(max(0, slices.Index(roundings[:], rounding)))
	if stateTypes[saved.StateType] != stateType {
		err = errors.Join(err, fmt.Errorf("%s: %s is %q, expected float32 or bfloat16", g.class, stateTypeKey, stateType))
	}
	if rounding != "" && roundings[saved.Rounding] != rounding {
		err = errors.Join(err, fmt.Errorf("%s: %s is %q, expected nearest, stochastic or kahan", g.class, roundingKey, rounding))
	}
	stored := saved != Storage{} || *s != Storage{}
	if *s != (Storage{}) {
		saved = *s
	}
	return saved, stored, errors.Join(err, saved.check(g.class))
}

// A stored is a state of a parameter: its elements, of the type d, or none if d is None.
type stored struct {
	d    engine.DType
	n    int
	data []uint64
}

// makeStored returns n elements, which are x rounded to the type.
func makeStored(d engine.DType, n int, x float64) stored {
	c := stored{d, n, make([]uint64, (n*d.Size()+7)/8)}
	switch d {
	case engine.Float64:
		fill(view[float64](&c), x)
	case engine.Float32:
		fill(view[float32](&c), float32(x))
	case engine.BFloat16:
		fill(view[uint16](&c), kernel.NarrowBFloat16(float32(x)))
	default:
		fill(view[uint16](&c), kernel.NarrowFloat16(float32(x)))
	}
	return c
}

// storedCopy returns a state with these elements.
func storedCopy[T Element](x []T) stored {
	c := makeStored(dtype[T](), len(x), 0)
	copy(view[T](&c), x)
	return c
}

// storedEvery returns a state with every n-th of these elements.
func storedEvery[T Element](x []T, n int) stored {
	if n == 1 {
		return storedCopy(x)
	}
	some := make([]T, 0, (len(x)+n-1)/n)
	for i := 0; i < len(x); i += n {
		some = append(some, x[i])
	}
	return storedCopy(some)
}

func fill[T comparable](s []T, x T) {
	var zero T
	if x == zero {
		return
	}
	for i := range s {
		s[i] = x
	}
}

func view[T any](c *stored) []T {
	return unsafe.Slice((*T)(unsafe.Pointer(unsafe.SliceData(c.data))), c.n)
}

func (c *stored) made() bool { return c.d != engine.None }

func (c *stored) address() uintptr { return engine.Address(unsafe.Pointer(unsafe.SliceData(c.data))) }

// get returns element i of a state that is not of float64.
func (c *stored) get(i int) float32 {
	switch c.d {
	case engine.Float32:
		return view[float32](c)[i]
	case engine.BFloat16:
		return kernel.WidenBFloat16(view[uint16](c)[i])
	}
	return kernel.WidenFloat16(view[uint16](c)[i])
}

// set is the inverse of get, and rounds.
func (c *stored) set(i int, x float32) {
	switch c.d {
	case engine.Float32:
		view[float32](c)[i] = x
	case engine.BFloat16:
		view[uint16](c)[i] = kernel.NarrowBFloat16(x)
	default:
		view[uint16](c)[i] = kernel.NarrowFloat16(x)
	}
}

// as returns the state in another type, to which its elements are rounded.
func (c *stored) as(d engine.DType) stored {
	if c.d == d {
		return *c
	}
	other := makeStored(d, c.n, 0)
	for i := range c.n {
		other.set(i, c.get(i))
	}
	return other
}

// tensor returns the state for a saved state.
func (c *stored) tensor(key string, shape []int) safetensors.Tensor {
	switch c.d {
	case engine.Float64:
		return tensorOf(key, shape, view[float64](c))
	case engine.Float32:
		return tensorOf(key, shape, view[float32](c))
	case engine.BFloat16:
		return tensorOf(key, shape, view[BFloat16](c))
	}
	return tensorOf(key, shape, view[Float16](c))
}

// savedTypes are the names of types in files.
var savedTypes = map[string]engine.DType{"F32": engine.Float32, "BF16": engine.BFloat16, "F16": engine.Float16, "F64": engine.Float64}

// stored reads a tensor of n elements, of one of these types.
func (s *savedState) stored(key string, n int, types ...engine.DType) stored {
	t := s.tensors[key]
	d := savedTypes[t.DType]
	if !slices.Contains(types, d) {
		d = types[0] // whose absence is an error
	}
	c := stored{d: d, n: n}
	switch d {
	case engine.Float64:
		c.data = wordsOf(vector[float64](s, key, n))
	case engine.Float32:
		c.data = wordsOf(vector[float32](s, key, n))
	case engine.BFloat16:
		c.data = wordsOf(vector[BFloat16](s, key, n))
	default:
		c.data = wordsOf(vector[Float16](s, key, n))
	}
	return c
}

// wordsOf returns a copy of s.
func wordsOf[T Element](s []T) []uint64 {
	c := stored{n: len(s), data: make([]uint64, (len(s)*int(unsafe.Sizeof(T(0)))+7)/8)}
	copy(view[T](&c), s)
	return c.data
}

// typesOf returns the types that a saved state may have, that of the parameter first.
func typesOf[T Element](stored bool) []engine.DType {
	types := []engine.DType{dtype[T]()}
	if stored && types[0] != engine.Float64 {
		types = append(types, engine.Float32, engine.BFloat16, engine.Float16)
	}
	return types
}

// extras are the states that a Storage adds to a parameter.
type extras struct {
	master stored // the master copy of the parameter
	rest   stored // the compensation of the parameter
}

// extra returns the state that a flag of a row requires, or nil.
func (s *extras) extra(flag engine.Flags) *stored {
	switch flag {
	case engine.Master:
		return &s.master
	case engine.Kahan:
		return &s.rest
	}
	return nil
}

// makeExtra creates the state that a flag of a row requires, of the type d, and returns it, or nil. It drops those that are not
// required.
func makeExtra[T Element](s *extras, value []T, flag engine.Flags, d engine.DType) *stored {
	c := s.extra(flag)
	if c != nil && !c.made() {
		*c = extraOf(value, &s.master, &s.rest, flag, d)
	}
	if flag != engine.Master {
		s.master = stored{}
	}
	if flag != engine.Kahan {
		s.rest = stored{}
	}
	return c
}

// tensors returns the states for a saved state.
func (s *extras) tensors(shape []int) (all []safetensors.Tensor) {
	if s.master.made() {
		all = append(all, s.master.tensor(masterKey, shape))
	}
	if s.rest.made() {
		all = append(all, s.rest.tensor(compensationKey, shape))
	}
	return all
}

// load reads the states of a parameter of n elements of the type d, if there are any.
func (s *extras) load(saved *savedState, n int, d engine.DType) {
	if saved.has(masterKey) {
		s.master = saved.stored(masterKey, n, engine.Float32)
	}
	if saved.has(compensationKey) {
		s.rest = saved.stored(compensationKey, n, d)
	}
}

// extraOf returns a new master copy or compensation for the value of a parameter of 16 bits, from the one that it had.
func extraOf[T Element](value []T, master, compensation *stored, flag engine.Flags, d engine.DType) stored {
	c := makeStored(d, len(value), 0)
	param := stored{d: dtype[T](), n: len(value), data: wordsOf(value)}
	for i := range value {
		switch exact := param.get(i); {
		case flag == engine.Kahan && master.made():
			if rest := master.get(i) - exact; rest-rest == 0 {
				c.set(i, rest)
			}
		case flag == engine.Kahan:
		case compensation.made():
			c.set(i, exact+compensation.get(i))
		default:
			c.set(i, exact)
		}
	}
	return c
}
