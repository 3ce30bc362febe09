// Package engine distributes the elements of the rows of an optimizer step over threads.
package engine

import (
	"fmt"
	"math"
	"slices"
	"unsafe"

	"github.com/goptim/goptim/goptim/internal/kernel"
)

// A DType is the type of elements.
type DType uint8

// The numbers are part of the layout of a Row. Rows of BFloat16 and Float16 are not supported yet, and Check rejects them.
const (
	None DType = iota
	Float32
	Float64
	BFloat16
	Float16
)

var dtypeNames = [...]string{"none", "float32", "float64", "bfloat16", "float16"}

func (d DType) String() string {
	if int(d) < len(dtypeNames) {
		return dtypeNames[d]
	}
	return fmt.Sprintf("dtype %d", uint8(d))
}

// Size returns the size of an element in bytes.
func (d DType) Size() int {
	switch d {
	case Float32:
		return 4
	case BFloat16, Float16:
		return 2
	}
	return 8
}

// Round returns x rounded to the type.
func (d DType) Round(x float64) float64 {
	if d == Float32 {
		return float64(float32(x))
	}
	return x
}

const (
	// States is the number of states that a row has space for.
	States = 6
	// Columns is the maximum number of states that are passed to a kernel as tensors. They are the first ones.
	Columns = 3
)

// A Row is one parameter: the addresses of its tensors ("columns"), each of N elements, and their types. Callers in other
// languages write tables of rows, so the layout is fixed. It is defined here and in bindings/_core/gather.c, and a test
// compares the two. The engine never keeps a row after the step.
type Row struct {
	N     int64
	Step  uintptr // of the scalar step count; 0 for optimizers that do not count steps
	Param uintptr
	Grad  uintptr         // 0 for rows of one tensor
	State [States]uintptr // of a tensor or a scalar; 0 for none
	Types
	// The rows and columns of a matrix if the optimizer treats the parameter as a batch of matrices; otherwise 0.
	Rows, Cols uint32
}

// Types are a row's flags and the types of its tensors and scalars. The type of a missing one is None.
type Types struct {
	ParamType DType
	GradType  DType
	StepType  DType
	_         uint8
	Flags     Flags
	StateType [States]DType
	_         [2]uint8
}

// Flags are properties of a row. From FirstScalar on, each state has a bit that is set if the state is a scalar.
type Flags uint32

const (
	// First marks a row whose state is not initialized yet.
	First Flags = 1 << 0
	// Owned marks a row whose tensors and scalars each begin an allocation of their own. Two such rows share memory only if
	// they have an address in common.
	Owned Flags = 1 << 1
	// FirstScalar is the bit of state 0.
	FirstScalar Flags = 1 << 8
)

// ScalarState returns the flag of a row whose state k is a scalar.
func ScalarState(k int) Flags { return FirstScalar << k }

// TypesOf returns the types of a row without states: those of the parameter and its gradient, and that of the step count.
func TypesOf(elements, step DType) Types {
	return Types{ParamType: elements, GradType: elements, StepType: step}
}

// AddScalar adds a scalar state.
func (t *Types) AddScalar(k int, d DType) {
	t.StateType[k] = d
	t.Flags |= ScalarState(k)
}

// Equal reports whether two rows have the same types and flags.
func (t *Types) Equal(o *Types) bool {
	return *(*[2]uint64)(unsafe.Pointer(t)) == *(*[2]uint64)(unsafe.Pointer(o))
}

// First reports whether the row's state is not initialized yet.
func (t *Types) First() bool { return t.Flags&First != 0 }

// DType returns the type of the parameter's elements.
func (t *Types) DType() DType { return t.ParamType }

// A Layout describes the rows of an optimizer.
type Layout struct {
	Counts bool        // whether rows have a step count
	Single bool        // whether rows have one tensor, Param, and no gradient
	Used   int         // states from this one on are unused
	State  [States]Use // its states
}

// A Use is the kind of a state.
type Use uint8

// A state is unused, a tensor of the parameter's length, or a scalar.
const (
	Unused Use = iota
	Column
	Scalar
)

// LayoutOf returns the layout with the given states.
func LayoutOf(counts bool, states ...Use) Layout {
	l := Layout{Counts: counts}
	for k, use := range states {
		l.Set(k, use)
	}
	return l
}

// Set sets the kind of a state.
func (l *Layout) Set(k int, use Use) {
	l.State[k] = use
	if use != Unused {
		l.Used = max(l.Used, k+1)
	}
}

// HasScalars reports whether one of the states is a scalar.
func (l *Layout) HasScalars() bool { return slices.Contains(l.State[:], Scalar) }

// mostLines is the number of cache lines of a tensor that Prefetch prefetches.
const mostLines = 4

// Prefetch prefetches the first cache lines of each tensor of a row: those that the hardware prefetcher does not load.
func (r *Row) Prefetch(l *Layout) {
	lines := min((int(r.N)*r.ParamType.Size()+63)/64, mostLines)
	used := 2 + l.Used
	if l.Single {
		used = 1
	}
	kernel.Prefetch((*[2 + States]uintptr)(unsafe.Pointer(&r.Param))[:used], lines)
}

// Check returns an error if the row is invalid for an optimizer with the given layout.
func (r *Row) Check(l *Layout) error {
	if r.ParamType != Float32 && r.ParamType != Float64 {
		return fmt.Errorf("elements of %v; expected float32 or float64", r.ParamType)
	}
	size := int64(r.ParamType.Size())
	if r.N < 0 || r.N > math.MaxInt64/size {
		return fmt.Errorf("%d elements", r.N)
	}
	expected := r.ParamType
	if l.Single {
		expected = None
	}
	if r.GradType != expected {
		return fmt.Errorf("a gradient of %v; expected %v", r.GradType, expected)
	}
	if l.Counts {
		if err := checkScalar("the step", r.Step, r.StepType); err != nil {
			return err
		}
	}
	for k, use := range l.State[:l.Used] {
		if err := r.checkState(k, use, size); err != nil {
			return err
		}
	}
	if r.N == 0 {
		return nil
	}
	if err := checkAddress("the parameter", r.Param, r.N*size); err != nil {
		return err
	}
	if l.Single {
		if r.Grad != 0 {
			return fmt.Errorf("address %#x of the gradient; expected none", r.Grad)
		}
		return nil
	}
	return checkAddress("the gradient", r.Grad, r.N*size)
}

// AverageState is the state that is the average of a row's parameter in a step that averages. No optimizer uses it then.
const AverageState = States - 1

// CheckAverage returns an error if the average of the row's parameter is invalid. A missing one is valid.
func (r *Row) CheckAverage() error {
	if r.State[AverageState] == 0 || r.N == 0 {
		return nil
	}
	return r.checkState(AverageState, Column, int64(r.ParamType.Size()))
}

// AverageOf returns elements lo to hi of the average of a row's parameter, or nil if it is missing.
func AverageOf[T any](r *Row, lo, hi int) []T {
	if r.State[AverageState] == 0 {
		return nil
	}
	return column[T](r.State[AverageState], lo, hi)
}

// PrefetchAverage is Prefetch for the average of the row's parameter.
func (r *Row) PrefetchAverage() {
	if r.State[AverageState] != 0 {
		kernel.Prefetch(r.State[AverageState:], min(int(uint64(r.N)*uint64(r.ParamType.Size())/64)+1, mostLines))
	}
}

func (r *Row) checkState(k int, use Use, size int64) error {
	if use == Unused {
		return nil
	}
	scalar := r.Flags&ScalarState(k) != 0
	if scalar != (use == Scalar) {
		return fmt.Errorf("%s has the flag of a scalar: %t; expected %t", stateNames[k], scalar, !scalar)
	}
	if scalar {
		return checkScalar(stateNames[k], r.State[k], r.StateType[k])
	}
	if r.StateType[k] != r.ParamType {
		return fmt.Errorf("%s of %v; expected %v", stateNames[k], r.StateType[k], r.ParamType)
	}
	if r.N == 0 {
		return nil
	}
	return checkAddress(stateNames[k], r.State[k], r.N*size)
}

var stateNames = [States]string{"state 0", "state 1", "state 2", "state 3", "state 4", "state 5"}

func checkScalar(what string, a uintptr, d DType) error {
	if d != Float32 && d != Float64 {
		return fmt.Errorf("%s of %v; expected float32 or float64", what, d)
	}
	return checkAddress(what, a, 1)
}

// checkAddress rejects addresses that are not valid in any process: the first page, and ranges that wrap around.
func checkAddress(what string, a uintptr, bytes int64) error {
	if a < 4096 || a > math.MaxInt64-uintptr(bytes) {
		return addressError(what, a)
	}
	return nil
}

func addressError(what string, a uintptr) error { return fmt.Errorf("address %#x of %s", a, what) }

// Steps returns the row's step count. The layout must count steps.
func (r *Row) Steps() float64 { return number(r.Step, r.StepType) }

// SetSteps sets the row's step count.
func (r *Row) SetSteps(t float64) { setNumber(r.Step, r.StepType, t) }

// Next returns the step count after the step, incremented in its dtype as torch does.
func (r *Row) Next() float64 { return r.StepType.Round(r.Steps() + 1) }

// Tick increments the step count, and returns it.
func (r *Row) Tick() float64 {
	t := r.Next()
	r.SetSteps(t)
	return t
}

// Number returns state i, which must be a scalar.
func (r *Row) Number(i int) float64 { return number(r.State[i], r.StateType[i]) }

// SetNumber sets state i, which must be a scalar, and returns the value rounded to its dtype.
func (r *Row) SetNumber(i int, x float64) float64 { return setNumber(r.State[i], r.StateType[i], x) }

func number(a uintptr, d DType) float64 {
	if d == Float32 {
		return float64(*(*float32)(Pointer(a)))
	}
	return *(*float64)(Pointer(a))
}

func setNumber(a uintptr, d DType, x float64) float64 {
	if d == Float32 {
		*(*float32)(Pointer(a)) = float32(x)
	} else {
		*(*float64)(Pointer(a)) = x
	}
	return d.Round(x)
}

// View returns elements lo to hi of a row's tensors. It returns nil for a gradient that is not in the layout, and for states
// that are not tensors there.
func View[T any](r *Row, l *Layout, lo, hi int) (param, grad []T, states [Columns][]T) {
	for k, use := range l.State[:Columns] {
		if use == Column {
			states[k] = column[T](r.State[k], lo, hi)
		}
	}
	param = column[T](r.Param, lo, hi)
	if !l.Single {
		grad = column[T](r.Grad, lo, hi)
	}
	return param, grad, states
}

func column[T any](address uintptr, lo, hi int) []T {
	return unsafe.Slice((*T)(Pointer(address)), hi)[lo:]
}

// Address converts a pointer to an address that rows can contain. The memory is on the heap, because a stack moves when it grows.
func Address(p unsafe.Pointer) uintptr {
	if escapes {
		escaped = p
	}
	return uintptr(p)
}

// The compiler allocates on the heap what may be assigned to a global variable.
var (
	escapes bool // always false
	//lint:ignore U1000 nothing reads it
	escaped unsafe.Pointer
)

// Pointer converts an address to a pointer. The address must be foreign memory, or Go memory that the caller keeps alive.
func Pointer(address uintptr) unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Pointer(&address)) }
