// Package steps is how package bindings steps optimizers: each registers its Kind here, and the binding finds it by its
// number. A step's rows lie in memory that another language owns.
package steps

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"unsafe"
)

// ErrCall is a step that cannot be, as of a group at no address. Nothing has changed.
var ErrCall = errors.New("invalid call")

// Scalars is how many scalars a group has room for.
const Scalars = 16

// A Group is one parameter group of a step: a table of rows, and the scalars of its options. Its layout is fixed:
// bindings/_core/gather.c writes it.
type Group struct {
	Next    uintptr // the address of the next group; 0 after the last
	Table   uintptr // the address of the first row
	Rows    int64
	Count   int64 // of the scalars
	Scalars [Scalars]float64
}

// After is the next group; nil after the last.
func (g *Group) After() *Group { return at(g.Next) }

// Words are the scalars.
func (g *Group) Words() []float64 { return g.Scalars[:g.Count] }

// A Call is one step of some groups.
type Call struct {
	Groups    *Group // the first
	Threads   int    // as many threads as may work on the step
	OnlyCheck bool   // report the errors of the rows and the scalars, and leave everything as it is
	// Team, if the caller has threads at hand, calls work on as many as threads of them at the same time, one being
	// the caller's, with the number of the thread from 0, or -1, and returns when every call has returned; nil: the
	// engine's own threads.
	Team func(threads int, work func(thread int))
	Pow  func(x, y float64) float64 // C's pow
}

// Call checks the groups from an address on, and has the kind step them. It returns the number of rows.
func (k *Kind) Call(groups uintptr, c Call) (rows int64, err error) {
	for address, n := groups, 0; address != 0 || n == 0; n++ {
		if int64(address) < 4096 || address%8 != 0 { // beyond half of all addresses there is no memory
			return 0, fmt.Errorf("goptim: group %d is at %#x: %w", n, int64(address), ErrCall)
		}
		g := at(address)
		if g.Count != int64(k.Words()) {
			return 0, fmt.Errorf("goptim: group %d has %d scalars, expected %d: %w", n, g.Count, k.Words(), ErrCall)
		}
		if g.Rows < 0 || (g.Rows > 0 && (g.Table < 4096 || g.Table%8 != 0)) {
			return 0, fmt.Errorf("goptim: %s: a table of %d rows at %#x: %w", k.Name, g.Rows, g.Table, ErrCall)
		}
		address, rows = g.Next, rows+g.Rows
	}
	c.Groups = at(groups)
	return rows, k.Step(c)
}

func at(address uintptr) *Group { return *(**Group)(unsafe.Pointer(&address)) }

// A Kind is what Step can do: the step of an optimizer, or of Muon a half of it. Its fields but Step are what another
// language has to know to hand over a group.
type Kind struct {
	Name string `json:"name"` // torch's class
	// Classes are all classes of torch that the kind steps, each with the values of options that its groups lack in some
	// version of torch.
	Classes map[string]map[string]float64 `json:"classes"`
	// Options are the keys of a group in the order of the scalars; an element of a pair as "betas[0]".
	Options []string `json:"scalars"`
	Flags   []string `json:"flags"` // those of Options that are true or false: 1 or 0
	// Names are the texts that Options may be, and the numbers that stand for them; "" is None.
	Names map[string]map[string]float64 `json:"names,omitempty"`
	Extra []string                      `json:"extra"` // scalars after Options that are not of the group
	// Defaults and Ranges are the tags of options in Go, by their keys.
	Defaults map[string]string `json:"defaults"`
	Ranges   map[string]string `json:"ranges"`

	Counts  bool    `json:"counts"`  // a parameter's state has a step
	Integer bool    `json:"integer"` // the step is a Python int
	States  []State `json:"states"`
	Sparse  bool    `json:"sparse"` // a table is of goptim's sparseRow instead of engine.Row
	// Sums reports whether the gradients of a row that repeats are added up first; Zero are options that must be zero:
	// both of kinds of sparse gradients.
	Sums bool     `json:"sums"`
	Zero []string `json:"zero,omitempty"`

	Step func(Call) error `json:"-"`
	// Spec is the optimizer's specification in package goptim, for its tests.
	Spec any `json:"-"`
}

// A State is a state of a parameter that a kind updates, in its place in a row.
type State struct {
	Key    string `json:"key"`
	Scalar bool   `json:"scalar,omitempty"` // of one element, instead of the parameter's shape
	Of     string `json:"of,omitempty"`     // or see the constants
	// When, if it is not empty, is the scalar that asks for the state: by not being zero, or by being above 0.
	When  string `json:"when,omitempty"`
	Above bool   `json:"above,omitempty"`
	// Given says that the caller hands over the tensor with a row: it is not one of the parameter's state.
	Given bool `json:"given,omitempty"`
}

// What a state has a number of: for every row or every column of the matrices of a parameter's last two dimensions; or for
// every element of a parameter of fewer dimensions, the only ones that have the state.
const (
	OfRows   = "rows"
	OfCols   = "cols"
	OfVector = "vector"
	// The same as OfRows and OfCols in tensors without the dimension of 1.
	OfFlatRows = "flat_rows"
	OfFlatCols = "flat_cols"
)

// Words is how many scalars a group of the kind has.
func (k *Kind) Words() int { return len(k.Options) + len(k.Extra) }

var kinds []*Kind

// Register adds a kind, when package goptim is initialized.
func Register(k *Kind) {
	if k.Words() > Scalars {
		panic(fmt.Sprintf("%s has %d scalars, expected at most %d", k.Name, k.Words(), Scalars))
	}
	for _, s := range k.States {
		if s.When != "" && !slices.Contains(k.Options, s.When) && !slices.Contains(k.Extra, s.When) {
			panic(fmt.Sprintf("%s: state %s depends on %q, which is no scalar", k.Name, s.Key, s.When))
		}
	}
	kinds = append(kinds, k)
}

// Kinds are all kinds. The index of one is its number in Step.
func Kinds() []*Kind { return kinds }

// Find is the index of the kind of a class.
func Find(class string) (int, error) {
	at := slices.IndexFunc(kinds, func(k *Kind) bool {
		_, ok := k.Classes[class]
		return ok
	})
	if at < 0 {
		return 0, fmt.Errorf("goptim: no kind %q: %w", class, ErrCall)
	}
	return at, nil
}

// A Description is what another language has to know.
type Description struct {
	Kinds []*Kind `json:"kinds"` // in their order
	// Structs are the structs in its memory, each with its size and with offset and size of each field, in bytes.
	Structs map[string]map[string][2]uintptr `json:"structs"`
	// Constants are the numbers of types and flags, and the lengths of arrays.
	Constants map[string]int `json:"constants"`
}

var description = Description{
	Structs:   map[string]map[string][2]uintptr{"Group": fieldsOf(reflect.TypeFor[Group]())},
	Constants: map[string]int{"Scalars": Scalars},
}

// DescribeStruct adds a struct that the binding is given the address of.
func DescribeStruct[T any](name string) {
	description.Structs[name] = fieldsOf(reflect.TypeFor[T]())
}

// DescribeConstants adds constants.
func DescribeConstants(constants map[string]int) { maps.Copy(description.Constants, constants) }

func fieldsOf(t reflect.Type) map[string][2]uintptr {
	all := map[string][2]uintptr{"": {0, t.Size()}}
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Anonymous {
			for name, at := range fieldsOf(f.Type) {
				if name != "" {
					all[name] = [2]uintptr{f.Offset + at[0], at[1]}
				}
			}
		} else if f.Name != "_" {
			all[f.Name] = [2]uintptr{f.Offset, f.Type.Size()}
		}
	}
	return all
}

// Describe is the Description as JSON.
func Describe() (string, error) {
	description.Kinds = kinds
	text, err := json.Marshal(description)
	return string(text), err
}

// VectorBits is the width of the vectors that this process computes with: 512, 256 or 128; 0 if it takes one element
// at a time, for want of vectors or of GOEXPERIMENT=simd. Package goptim sets it.
var VectorBits int

// ResumeLBFGS resumes the lbfgs.Machine at an address, of a size in bytes. It returns an lbfgs.Ask; the error wraps
// goptim.ErrParam if the machine cannot be valid. Package goptim sets it.
var ResumeLBFGS func(address uintptr, size, threads int, team func(threads int, work func(thread int))) (ask int64, err error)
