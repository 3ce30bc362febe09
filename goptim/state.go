package goptim

import (
	"bytes"
	"crypto/sha256"
	"encoding"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
	"unsafe"

	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/goptim/internal/safetensors"
)

// ErrState reports a saved state that is damaged, or that belongs to a different optimizer or different parameters.
var ErrState = errors.New("invalid state")

// Stateful is implemented by each optimizer of this package and by Groups. The state is everything that the next Step
// depends on, except values and gradients: the options, the step counts, and tensors such as moments. Optimizers with equal
// parameters and states continue with exactly the same results.
type Stateful interface {
	// MarshalBinary encodes the state, with a version and a checksum. Parameters are identified by their order.
	encoding.BinaryMarshaler
	// UnmarshalBinary restores a state from MarshalBinary. The optimizer must have the same number of parameters, of the
	// same lengths. An error wraps ErrState, and nothing has changed.
	encoding.BinaryUnmarshaler
	groups() []group
}

// WriteState writes the state of optimizers as a safetensors file. In Python, goptim.load_state reads such files, and
// goptim.save_state writes them. docs/state.md describes the format. An optimizer is one of torch's parameter groups, and
// Groups are several. Parameters are identified by their Name, or by their index among all if the Name is empty.
func WriteState(w io.Writer, optimizers ...Stateful) error {
	groups, err := groupsOf(optimizers)
	var f *safetensors.File
	if err == nil {
		f, err = stateOf(groups, named)
	}
	if err == nil {
		_, err = f.WriteTo(w)
	}
	if err != nil {
		return fmt.Errorf("goptim: write state: %w", err)
	}
	return nil
}

// ReadState restores the state of optimizers from a file of WriteState or, in Python, goptim.save_state. The parameters must
// have the same names and numbers of elements. On an error, nothing has changed. It wraps ErrState unless it comes from r.
func ReadState(r io.Reader, optimizers ...Stateful) error {
	data, err := io.ReadAll(r)
	if err != nil {
		return fmt.Errorf("goptim: read state: %w", err)
	}
	groups, err := groupsOf(optimizers)
	if err == nil {
		err = load(data, groups, named)
	}
	if err != nil {
		return fmt.Errorf("goptim: read state: %w: %w", ErrState, err)
	}
	return nil
}

// envelope is the prefix of MarshalBinary's encoding: the format and its version. It is followed by the length of a
// safetensors file in 8 bytes, the file, and the SHA-256 of all preceding bytes.
const envelope = "goptim\x00\x01"

func marshal(s Stateful) ([]byte, error) {
	groups, err := groupsOf([]Stateful{s})
	var f *safetensors.File
	if err == nil {
		f, err = stateOf(groups, numbered)
	}
	if err != nil {
		return nil, fmt.Errorf("goptim: marshal: %w", err)
	}
	var b bytes.Buffer
	b.WriteString(envelope)
	b.Write(make([]byte, 8))
	if _, err := f.WriteTo(&b); err != nil {
		return nil, fmt.Errorf("goptim: marshal: %w", err)
	}
	binary.LittleEndian.PutUint64(b.Bytes()[len(envelope):], uint64(b.Len()-len(envelope)-8))
	sum := sha256.Sum256(b.Bytes())
	return append(b.Bytes(), sum[:]...), nil
}

func unmarshal(s Stateful, data []byte) error {
	payload, err := unwrap(data)
	var groups []group
	if err == nil {
		groups, err = groupsOf([]Stateful{s})
	}
	if err == nil {
		err = load(payload, groups, numbered)
	}
	if err != nil {
		return fmt.Errorf("goptim: unmarshal: %w: %w", ErrState, err)
	}
	return nil
}

func unwrap(data []byte) ([]byte, error) {
	const before = len(envelope) + 8
	switch {
	case len(data) < before+sha256.Size:
		return nil, fmt.Errorf("%d bytes: %w", len(data), io.ErrUnexpectedEOF)
	case string(data[:len(envelope)-1]) != envelope[:len(envelope)-1]:
		return nil, errors.New("not a state of this package")
	case data[len(envelope)-1] != envelope[len(envelope)-1]:
		return nil, fmt.Errorf("version %d, expected %d", data[len(envelope)-1], envelope[len(envelope)-1])
	}
	end := len(data) - sha256.Size
	if n := binary.LittleEndian.Uint64(data[len(envelope):]); n != uint64(end-before) {
		return nil, fmt.Errorf("%d bytes, expected %d", end-before, n)
	}
	if sum := sha256.Sum256(data[:end]); !bytes.Equal(sum[:], data[end:]) {
		return nil, errors.New("the checksum is another")
	}
	return data[before:end], nil
}

// A group is an optimizer whose state is saved.
type group interface {
	usable() error     // returns an error for an optimizer that was not constructed by its New function
	className() string // torch's class
	options() []option
	handles() []handle
	ordered() bool // whether the state depends on the order of the parameters
	// tensors returns the state of a parameter, named by torch's keys.
	tensors(param int) []safetensors.Tensor
	// load decodes saved options and states, and returns a function that applies them.
	load(g *savedGroup) (commit func(), err error)
}

// A handle describes a parameter of a group.
type handle struct {
	pointer any
	name    string
}

func handlesOf[T Element](params []*Param[T]) []handle {
	all := make([]handle, len(params))
	for i, p := range params {
		all[i] = handle{p, p.Name}
	}
	return all
}

// shape returns Shape, or that of a vector if Shape does not match the value.
func (p *Param[T]) shape() []int {
	if _, err := p.matrices(); err != nil || len(p.Shape) == 0 {
		return []int{len(p.Value)}
	}
	return p.Shape
}

// shape returns the shape as rows, or that of a vector if the value does not consist of whole rows.
func (p *SparseParam[T]) shape() []int {
	if p.Width < 1 || len(p.Value)%p.Width != 0 {
		return []int{len(p.Value)}
	}
	return []int{len(p.Value) / p.Width, p.Width}
}

// An option is a hyperparameter with torch's key. Its value, a pointer, is encoded in JSON.
type option struct {
	key   string
	value any
	null  bool // whether null is allowed
}

// A number is a float64 in JSON. If it is not finite, it is encoded as a string with its name in Python.
type number float64

func (n number) MarshalJSON() ([]byte, error) {
	text := strconv.FormatFloat(float64(n), 'g', -1, 64)
	if math.IsNaN(float64(n)) || math.IsInf(float64(n), 0) {
		return []byte(`"` + strings.ToLower(strings.TrimPrefix(text, "+")) + `"`), nil
	}
	return []byte(text), nil
}

func (n *number) UnmarshalJSON(data []byte) error {
	switch text := string(data); text {
	case `"inf"`:
		*n = number(math.Inf(1))
	case `"-inf"`:
		*n = number(math.Inf(-1))
	default: // also "nan", which is not allowed for any option
		var x float64
		if err := safetensors.Decode(data, &x); err != nil {
			return fmt.Errorf("%s, expected a number", text)
		}
		*n = number(x)
	}
	return nil
}

// A tuple is an array of numbers in JSON.
type tuple []float64

func tupleOf(s []float64) *tuple { return (*tuple)(&s) }

func (t tuple) MarshalJSON() ([]byte, error) {
	all := make([]number, len(t))
	for i, x := range t {
		all[i] = number(x)
	}
	return json.Marshal(all)
}

func (t tuple) UnmarshalJSON(data []byte) error {
	var all []number
	if err := json.Unmarshal(data, &all); err != nil {
		return err
	}
	if len(all) != len(t) {
		return fmt.Errorf("%d numbers, expected %d", len(all), len(t))
	}
	for i, x := range all {
		t[i] = float64(x)
	}
	return nil
}

// named identifies parameters by their name, or their index if it is empty; numbered always by their index.
func named(i int, h handle) string {
	if h.name != "" {
		return h.name
	}
	return strconv.Itoa(i)
}

func numbered(i int, _ handle) string { return strconv.Itoa(i) }

// namesOf returns the names of the parameters of all groups, which must be distinct.
func namesOf(groups []group, name func(i int, h handle) string) ([][]string, error) {
	all, seen, i := make([][]string, len(groups)), map[string]bool{}, 0
	for k, g := range groups {
		for _, h := range g.handles() {
			n := name(i, h)
			switch {
			case seen[n]:
				return nil, fmt.Errorf("group %d: two parameters have the name %s: %w", k, n, ErrParam)
			case !utf8.ValidString(n):
				return nil, fmt.Errorf("group %d: the name %q is not UTF-8: %w", k, n, ErrParam)
			}
			seen[n] = true
			all[k] = append(all[k], n)
			i++
		}
	}
	return all, nil
}

// The keys of a file's metadata, and the version of the layout.
const (
	versionKey   = "goptim_state"
	groupsKey    = "param_groups"
	stateVersion = "1"
)

func groupsOf[S Stateful](optimizers []S) (all []group, err error) {
	for i, o := range optimizers {
		if isNil(o) {
			return nil, fmt.Errorf("group %d is nil: %w", i, ErrParam)
		}
		all = append(all, o.groups()...)
	}
	for i, g := range all {
		if err := g.usable(); err != nil {
			return nil, fmt.Errorf("group %d: %w", i, err)
		}
	}
	return all, nil
}

func isNil(o Stateful) bool {
	v := reflect.ValueOf(o)
	return !v.IsValid() || v.Kind() == reflect.Pointer && v.IsNil()
}

// stateOf returns the state of groups as a file whose tensors share the memory of the optimizers.
func stateOf(groups []group, name func(i int, h handle) string) (*safetensors.File, error) {
	names, err := namesOf(groups, name)
	if err != nil {
		return nil, err
	}
	f := new(safetensors.File)
	descriptions := []byte{'['}
	for k, g := range groups {
		if k > 0 {
			descriptions = append(descriptions, ',')
		}
		description, err := describe(g, names[k])
		if err != nil {
			return nil, err
		}
		descriptions = append(descriptions, description...)
		for i, n := range names[k] {
			for _, t := range g.tensors(i) {
				if err := t.Check(); err != nil { // the length of the value has changed since the last step
					return nil, fmt.Errorf("group %d: parameter %s: %w: %w", k, n, err, ErrParam)
				}
				t.Name = "state." + n + "." + t.Name
				f.Tensors = append(f.Tensors, t)
			}
		}
	}
	f.Metadata = map[string]string{versionKey: stateVersion, groupsKey: string(append(descriptions, ']'))}
	return f, nil
}

// describe returns the JSON description of a group.
func describe(g group, params []string) ([]byte, error) {
	if params == nil {
		params = []string{}
	}
	b := []byte{'{'}
	for i, o := range append([]option{{key: "optimizer", value: g.className()}, {key: "params", value: params}}, g.options()...) {
		value, err := json.Marshal(o.value)
		if err != nil {
			return nil, err
		}
		if i > 0 {
			b = append(b, ',')
		}
		b = append(append(strconv.AppendQuote(b, o.key), ':'), value...)
	}
	return append(b, '}'), nil
}

// A savedGroup is a group of a file, with states in the order of the optimizer's parameters.
type savedGroup struct {
	class   string
	options map[string]json.RawMessage
	states  []savedState
}

// A savedState is the state of one parameter. It records the first error of its methods.
type savedState struct {
	name    string
	tensors map[string]safetensors.Tensor
	err     error
}

// load restores the state of all groups from a file, or of none on an error.
func load(data []byte, groups []group, name func(i int, h handle) string) error {
	f, err := safetensors.Parse(data)
	if err != nil {
		return err
	}
	names, err := namesOf(groups, name)
	if err != nil {
		return err
	}
	saved, err := savedGroups(f, groups, names)
	if err != nil {
		return err
	}
	var commits []func()
	for i, g := range groups {
		commit, err := g.load(saved[i])
		if err != nil {
			return fmt.Errorf("group %d: %w", i, err)
		}
		commits = append(commits, commit)
	}
	for _, commit := range commits {
		commit()
	}
	return nil
}

// savedGroups returns the groups of a file, which must have the given number of groups and the named parameters.
func savedGroups(f *safetensors.File, into []group, names [][]string) ([]*savedGroup, error) {
	version, ok := f.Metadata[versionKey]
	if !ok {
		return nil, errors.New("not the state of an optimizer")
	}
	if version != stateVersion {
		return nil, fmt.Errorf("version %s, expected %s", version, stateVersion)
	}
	groups, err := groupsIn(f.Metadata[groupsKey])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", groupsKey, err)
	}
	if len(groups) != len(names) {
		return nil, fmt.Errorf("%d groups of parameters, expected %d", len(groups), len(names))
	}
	tensors := map[string]map[string]safetensors.Tensor{}
	for _, t := range f.Tensors {
		rest, ok := strings.CutPrefix(t.Name, "state.")
		if !ok {
			continue
		}
		at := keyIn(rest)
		if at < 0 {
			return nil, fmt.Errorf("tensor %q, expected a parameter's name and a key", t.Name)
		}
		if tensors[rest[:at]] == nil {
			tensors[rest[:at]] = map[string]safetensors.Tensor{}
		}
		tensors[rest[:at]][rest[at+1:]] = t
	}
	all := make([]*savedGroup, len(groups))
	for i, g := range groups {
		all[i] = &savedGroup{options: g}
		var params []string
		if err := safetensors.Decode(g["optimizer"], &all[i].class); err != nil {
			return nil, fmt.Errorf("group %d: optimizer: %w", i, err)
		}
		if err := safetensors.Decode(g["params"], &params); err != nil {
			return nil, fmt.Errorf("group %d: params: %w", i, err)
		}
		if into[i].ordered() {
			if !slices.Equal(params, names[i]) {
				return nil, fmt.Errorf("group %d: parameters %q, expected %q", i, params, names[i])
			}
		} else if a, b := slices.Sorted(slices.Values(params)), slices.Sorted(slices.Values(names[i])); !slices.Equal(a, b) {
			return nil, fmt.Errorf("group %d: parameters %q, expected %q", i, params, names[i])
		}
		for _, n := range names[i] {
			all[i].states = append(all[i].states, savedState{name: n, tensors: tensors[n]})
			delete(tensors, n)
		}
	}
	for n := range tensors {
		return nil, fmt.Errorf("the state of %q, which is no parameter", n)
	}
	return all, nil
}

// groupsIn returns the members of the objects in a JSON array.
func groupsIn(text string) ([]map[string]json.RawMessage, error) {
	var objects []json.RawMessage
	if err := safetensors.Decode(json.RawMessage(text), &objects); err != nil {
		return nil, err
	}
	all := make([]map[string]json.RawMessage, len(objects))
	for i, object := range objects {
		all[i] = map[string]json.RawMessage{}
		err := safetensors.Members(object, func(key string, value json.RawMessage) error {
			all[i][key] = value
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("group %d: %w", i, err)
		}
	}
	return all, nil
}

// keyIn returns the position of the dot between a parameter's name and a key, which may end in an index; -1 if not found.
func keyIn(s string) int {
	at := strings.LastIndexByte(s, '.')
	if at < 0 || at == len(s)-1 {
		return -1
	}
	if strings.Trim(s[at+1:], "0123456789") == "" {
		return strings.LastIndexByte(s[:at], '.')
	}
	return at
}

// decode stores the saved options in options.
func (g *savedGroup) decode(options []option) error {
	for _, o := range options {
		value, ok := g.options[o.key]
		if !ok {
			if _, flag := o.value.(*bool); flag { // which does not exist in some versions of torch
				continue
			}
			return fmt.Errorf("%s: no %s", g.class, o.key)
		}
		decode := safetensors.Decode
		if o.null {
			reflect.ValueOf(o.value).Elem().SetZero() // because null does not change a value
			decode = func(value json.RawMessage, to any) error { return json.Unmarshal(value, to) }
		}
		if err := decode(value, o.value); err != nil {
			return fmt.Errorf("%s: %s: %w", g.class, o.key, err)
		}
	}
	return nil
}

// expect returns an error unless the class of the group is one of these.
func (g *savedGroup) expect(classes ...string) error {
	if !slices.Contains(classes, g.class) {
		return fmt.Errorf("the state of %s, expected that of %s", g.class, classes[0])
	}
	return nil
}

func (s *savedState) fail(format string, a ...any) {
	if s.err == nil {
		s.err = fmt.Errorf("parameter %s: %s", s.name, fmt.Sprintf(format, a...))
	}
}

func (s *savedState) empty() bool { return len(s.tensors) == 0 }

func (s *savedState) has(key string) bool {
	_, ok := s.tensors[key]
	return ok
}

// vector reads a tensor of n elements.
func vector[T Element](s *savedState, key string, n int) []T {
	t, ok := s.tensors[key]
	delete(s.tensors, key)
	size := 1
	for _, k := range t.Shape {
		size *= k
	}
	switch {
	case !ok:
		s.fail("no %s", key)
	case t.DType != dtypeName[T]():
		s.fail("%s is of %s, expected %s", key, t.DType, dtypeName[T]())
	case size != n:
		s.fail("%s is of shape %v, expected %d elements", key, t.Shape, n)
	default:
		return elementsOf[T](t.Data)
	}
	return nil
}

// spread makes a tensor without dimensions one of n equal elements.
func (s *savedState) spread(key string, n int) {
	if t, ok := s.tensors[key]; ok && len(t.Shape) == 0 {
		t.Shape, t.Data = []int{n}, bytes.Repeat(t.Data, n)
		s.tensors[key] = t
	}
}

// number reads a scalar tensor, and returns its value and its type.
func (s *savedState) number(key string) (x float64, dtype string) {
	t, ok := s.tensors[key]
	delete(s.tensors, key)
	switch {
	case !ok:
		s.fail("no %s", key)
	case len(t.Shape) != 0:
		s.fail("%s is of shape %v, expected one number", key, t.Shape)
	case t.DType == "F32":
		return float64(elementsOf[float32](t.Data)[0]), t.DType
	case t.DType == "F64":
		return elementsOf[float64](t.Data)[0], t.DType
	case t.DType == "BF16":
		return float64(elementsOf[BFloat16](t.Data)[0].Float32()), t.DType
	case t.DType == "F16":
		return float64(elementsOf[Float16](t.Data)[0].Float32()), t.DType
	case t.DType == "I64":
		n := int64(binary.LittleEndian.Uint64(t.Data))
		if int64(float64(n)) != n {
			s.fail("%s is %d", key, n)
		}
		return float64(n), t.DType
	default:
		s.fail("%s is of %s, expected a number", key, t.DType)
	}
	return 0, ""
}

// count reads a step count.
func (s *savedState) count(key string) float64 {
	x, _ := s.number(key)
	if !(x >= 0) || x != math.Trunc(x) || x > 1<<53 {
		s.fail("%s is %v, expected a count", key, x)
	}
	return x
}

// single reads a number that float32 can represent.
func (s *savedState) single(key string, x float64) float32 {
	if float64(float32(x)) != x && !math.IsNaN(x) {
		s.fail("%s is %v, expected a float32", key, x)
	}
	return float32(x)
}

// end returns the first error, or an error for entries that were not read.
func (s *savedState) end() error {
	for key := range s.tensors {
		s.fail("%s is not known", key)
	}
	return s.err
}

func dtypeName[T Element]() string {
	switch dtype[T]() {
	case engine.Float32:
		return "F32"
	case engine.BFloat16:
		return "BF16"
	case engine.Float16:
		return "F16"
	}
	return "F64"
}

var littleEndian = binary.NativeEndian.Uint16([]byte{1, 0}) == 1

// bytesOf returns s in little-endian order. On a little-endian machine, the result shares the memory of s.
func bytesOf[T Element](s []T) []byte {
	if len(s) == 0 {
		return []byte{}
	}
	b := unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(s))), len(s)*int(unsafe.Sizeof(s[0])))
	if !littleEndian {
		b = swapped(b, int(unsafe.Sizeof(s[0])))
	}
	return b
}

// elementsOf is the inverse of bytesOf. It returns a copy.
func elementsOf[T Element](b []byte) []T {
	s := make([]T, len(b)/int(unsafe.Sizeof(T(0))))
	if len(s) == 0 {
		return s
	}
	if !littleEndian {
		b = swapped(b, int(unsafe.Sizeof(s[0])))
	}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(s))), len(b)), b)
	return s
}

// swapped returns a copy of numbers of the given size with their bytes reversed.
func swapped(b []byte, size int) []byte {
	b = slices.Clone(b)
	for i := 0; i < len(b); i += size {
		slices.Reverse(b[i : i+size])
	}
	return b
}

func tensorOf[T Element](key string, shape []int, s []T) safetensors.Tensor {
	return safetensors.Tensor{Name: key, DType: dtypeName[T](), Shape: shape, Data: bytesOf(s)}
}

func scalarOf[T Element](key string, x T) safetensors.Tensor { return tensorOf(key, nil, []T{x}) }

func integerOf(key string, n int) safetensors.Tensor {
	return safetensors.Tensor{Name: key, DType: "I64", Data: binary.LittleEndian.AppendUint64(nil, uint64(n))}
}
