// Package steps connects package bindings to the optimizers. Each optimizer registers its Kind here, and the binding
// selects it by its number. The rows of a step are in memory that another language owns.
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

// ErrCall reports an invalid call, for example a group at a null address. Nothing has changed.
var ErrCall = errors.New("invalid call")

// Scalars is the maximum number of scalars of a group.
const Scalars = 28

// A Group is one parameter group of a step: a table of rows, and the scalars of its options. Its layout is fixed because
// bindings/_core/gather.c writes it.
type Group struct {
	Next    uintptr // the address of the next group; 0 after the last
	Table   uintptr // the address of the first row
	Rows    int64
	Count   int64            // the number of scalars
	Around  uintptr          // in the first group, the address of an Around, or 0
	Seed    uint64           // of stochastic rounding
	Scalars [Scalars]float64 // and after them the kind's results, which Step writes
}

// An Around is what a step does besides updating its rows: it clips the gradients that the update reads, averages the
// parameters, and clears the gradients. Its layout is fixed like that of a Group.
type Around struct {
	Flags       int64
	Order       int64   // of norms, an index of reduce.Orders
	MaxNorm     float64 // for Clip
	Coefficient float64 // for Scaled
	Weight      float64 // of a parameter in its average, for Average
	// Results.
	Norm float64 // of all gradients, for Clip
	Done int64   // 0 if the rows are not independent; then nothing has changed
}

// The flags of an Around.
const (
	Clip    = 1 << iota // the gradients are clipped to MaxNorm; all rows have one type
	Scaled              // the gradients are multiplied by Coefficient; rows may depend on each other
	Average             // a row's last state is the average of its parameter, or missing
	Clear               // the gradients become 0
	Widen               // for Clip: the norm of gradients of 16 bits is computed in float32, and not rounded
)

// After returns the next group, or nil after the last.
func (g *Group) After() *Group { return at(g.Next) }

// Words returns the scalars.
func (g *Group) Words() []float64 { return g.Scalars[:g.Count] }

// Results returns the memory for results, which is after the scalars.
func (g *Group) Results() []float64 { return g.Scalars[g.Count:] }

// A Call is one step of some groups.
type Call struct {
	Groups    *Group  // the first of a linked list
	Around    *Around // or nil
	Threads   int     // maximum number of threads
	OnlyCheck bool    // report the errors of the rows and the scalars without changing anything
	// Team calls work concurrently on up to the given number of threads, including the caller's, and returns when all
	// calls have returned. The argument of work is the number of its thread from 0, or -1. If Team is nil, the engine's
	// own threads are used.
	Team func(threads int, work func(thread int))
	// Pow, Exp and Log are C's pow, exp and log. If they are nil, those of package cpow are used.
	Pow      func(x, y float64) float64
	Exp, Log func(x float64) float64
}

// Call checks the groups, which begin at the given address, and steps them. It returns the number of rows.
func (k *Kind) Call(groups uintptr, c Call) (rows int64, err error) {
	for address, n := groups, 0; address != 0 || n == 0; n++ {
		if int64(address) < 4096 || address%8 != 0 { // there is no memory in the upper half of the address space
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
	if address := c.Groups.Around; address != 0 {
		if int64(address) < 4096 || address%8 != 0 || !k.Around {
			return 0, fmt.Errorf("goptim: %s: an Around at %#x: %w", k.Name, int64(address), ErrCall)
		}
		c.Around = *(**Around)(unsafe.Pointer(&address))
	}
	return rows, k.Step(c)
}

func at(address uintptr) *Group { return *(**Group)(unsafe.Pointer(&address)) }

// A Kind is the step of one optimizer, or for Muon one half of it, or an operation on lists of tensors, such as clipping.
// The fields other than Step describe to another language how to fill a group.
type Kind struct {
	Name string `json:"name"` // name of the class in torch, or of the operation
	// Tensors is the number of tensors in a row of an operation on lists, which has no classes and no counts: Param, and for
	// two also Grad. It is 0 for optimizers.
	Tensors int `json:"tensors"`
	// Results are the scalars that a step writes after those of a group. Those of an optimizer are entries of the group with these
	// keys. The group of an operation on lists must be the only one.
	Results []string `json:"results"`
	// Classes are the torch classes that the kind steps. Each has the values of options that its groups lack in some
	// version of torch.
	Classes map[string]map[string]float64 `json:"classes"`
	// Options are the keys of a group in the order of the scalars. The key of an element of a pair has the form
	// "betas[0]".
	Options []string `json:"scalars"`
	Flags   []string `json:"flags"` // the Boolean ones of Options, as 1 or 0
	// Names are the string values of options and the numbers that represent them; "" is None.
	Names map[string]map[string]float64 `json:"names,omitempty"`
	Extra []string                      `json:"extra"` // scalars after Options that are not in torch's parameter group
	// Defaults and Ranges are the tags of options in Go, by their keys.
	Defaults map[string]string `json:"defaults"`
	Ranges   map[string]string `json:"ranges"`

	Counts  bool    `json:"counts"`  // whether a parameter's state has a step count
	Integer bool    `json:"integer"` // whether the step count is a Python int
	States  []State `json:"states"`
	Around  bool    `json:"around"` // whether groups may have an Around
	Narrow  bool    `json:"narrow"` // whether rows may have BFloat16 or Float16 elements
	Stored  bool    `json:"stored"` // whether these rows may have states of other types, a master copy, and another rounding
	Sparse  bool    `json:"sparse"` // whether a table contains goptim's sparseRow instead of engine.Row
	// Sums reports whether the gradients of a repeated row are summed first. Zero are options that must be zero. Both are
	// only for kinds of sparse gradients.
	Sums bool     `json:"sums"`
	Zero []string `json:"zero,omitempty"`

	Step func(Call) error `json:"-"`
	// Spec is the optimizer's specification in package goptim, for its tests.
	Spec any `json:"-"`
}

// A State describes one state of a parameter that a kind updates. Its index is its position in a row.
type State struct {
	Key    string `json:"key"`
	Scalar bool   `json:"scalar,omitempty"` // one element instead of the parameter's shape
	Of     string `json:"of,omitempty"`     // one of the constants below, or empty
	// When, if not empty, is the scalar that enables the state: by being nonzero, or if Above is set by being above 0.
	When  string `json:"when,omitempty"`
	Above bool   `json:"above,omitempty"`
	From  string `json:"from,omitempty"` // the option that it is filled with before the first step; empty for a constant
	// Narrow, if not empty, is the type of the state's elements if the parameter has 16 bits. Otherwise it is the parameter's.
	Narrow string `json:"narrow,omitempty"`
	// Given reports whether the caller passes the tensor with each row. It is not part of the parameter's state.
	Given bool `json:"given,omitempty"`
}

// The possible values of Of. The state has one element for each row or each column of the matrices over a parameter's
// last two dimensions. With OfVector it has one for each element of the parameter, and only parameters of fewer than two
// dimensions have it.
const (
	OfRows   = "rows"
	OfCols   = "cols"
	OfVector = "vector"
	// Like OfRows and OfCols, but without the dimension of size 1.
	OfFlatRows = "flat_rows"
	OfFlatCols = "flat_cols"
	// One element for every n-th one of the parameter, where n is the scalar When; OfStart may also have no dimensions, and be 0.
	OfSlices = "slices"
	OfStart  = "start"
	// One float64, which in Python is a float instead of a tensor.
	OfFloat = "float"
)

// Words returns the number of scalars in a group of the kind.
func (k *Kind) Words() int { return len(k.Options) + len(k.Extra) }

var kinds []*Kind

// Register adds a kind. Package goptim calls it in its initialization.
func Register(k *Kind) {
	if n := k.Words() + len(k.Results); n > Scalars {
		panic(fmt.Sprintf("%s has %d scalars, expected at most %d", k.Name, n, Scalars))
	}
	for _, s := range k.States {
		if s.When != "" && !slices.Contains(k.Options, s.When) && !slices.Contains(k.Extra, s.When) {
			panic(fmt.Sprintf("%s: state %s depends on %q, which is no scalar", k.Name, s.Key, s.When))
		}
	}
	kinds = append(kinds, k)
}

// Kinds returns all kinds. The index of a kind is its number in the bindings' Step.
func Kinds() []*Kind { return kinds }

// Find returns the index of the kind for a class, or of an operation on lists.
func Find(name string) (int, error) {
	at := slices.IndexFunc(kinds, func(k *Kind) bool {
		_, ok := k.Classes[name]
		return ok || (k.Tensors != 0 && k.Name == name)
	})
	if at < 0 {
		return 0, fmt.Errorf("goptim: no kind %q: %w", name, ErrCall)
	}
	return at, nil
}

// A Description contains what another language has to know.
type Description struct {
	Kinds []*Kind `json:"kinds"` // in the order of their numbers
	// Structs are the structs that the other language fills, each with its size and the offset and size of each field, in
	// bytes.
	Structs map[string]map[string][2]uintptr `json:"structs"`
	// Constants are the numbers of types and flags, and the lengths of arrays.
	Constants map[string]int `json:"constants"`
}

var description = Description{
	Structs: map[string]map[string][2]uintptr{
		"Group": fieldsOf(reflect.TypeFor[Group]()), "Around": fieldsOf(reflect.TypeFor[Around]()),
	},
	Constants: map[string]int{"Scalars": Scalars, "Clip": Clip, "Scaled": Scaled, "Average": Average, "Clear": Clear, "Widen": Widen},
}

// DescribeStruct adds a struct whose address is passed to the bindings.
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

// Describe returns the Description as JSON.
func Describe() (string, error) {
	description.Kinds = kinds
	text, err := json.Marshal(description)
	return string(text), err
}

// VectorBits is the vector width that this process uses: 512, 256 or 128. It is 0 if the process computes one element at
// a time, because the CPU lacks vector instructions or Go was built without GOEXPERIMENT=simd. Package goptim sets it.
var VectorBits int

// ResumeLBFGS resumes the lbfgs.Machine at an address, whose size is in bytes. It returns an lbfgs.Ask. The error wraps
// goptim.ErrParam if the machine is invalid. Package goptim sets it.
var ResumeLBFGS func(address uintptr, size, threads int, team func(threads int, work func(thread int))) (ask int64, err error)
