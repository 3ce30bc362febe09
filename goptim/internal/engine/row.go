// Package engine distributes the elements of the rows of an optimizer step over threads.
package engine

import (
	"fmt"
	"math"
	"unsafe"

	"github.com/goptim/goptim/goptim/internal/kernel"
)

// A DType is the type of a row's elements.
type DType uint8

// The values are part of the layout of a Row.
const (
	None DType = iota
	Float32
	Float64
)

func (d DType) String() string {
	switch d {
	case Float32:
		return "float32"
	case Float64:
		return "float64"
	}
	return fmt.Sprintf("dtype %d", uint8(d))
}

// Size returns the size of an element in bytes.
func (d DType) Size() int {
	if d == Float32 {
		return 4
	}
	return 8
}

// States is the largest number of states of a row.
const States = 3

// A Row has the addresses of the tensors of one parameter, each with N elements. Callers in other languages fill tables of rows,
// so the layout is fixed: eight 64-bit words. The engine does not keep rows after a step.
type Row struct {
	N     int64
	Kind  Kind
	Param uintptr
	Grad  uintptr
	Step  uintptr         // address of the scalar step count; 0 if the optimizer does not have one
	State [States]uintptr // addresses of state tensors or scalar states; 0 for none
}

// A Kind packs the properties of a row: the dtype of the elements in bits 0 to 7, the dtype of Step in bits 8 to 15, First in bit
// 16, and from bit 32 on eight bits per state for the dtype of a scalar state.
type Kind uint64

// First marks a row whose state is uninitialized.
const First Kind = 1 << 16

// NumberKind returns the bits of a Kind for a scalar state.
func NumberKind(state int, d DType) Kind { return Kind(d) << (32 + 8*state) }

// A Layout describes the rows of an optimizer.
type Layout struct {
	Counts bool        // whether a row has a step count
	State  [States]Use // how each state is used
}

// A Use is the form of a state.
type Use uint8

// A state is unused, a tensor with as many elements as the parameter, or a scalar.
const (
	Unused Use = iota
	Column
	Number
)

// KindOf returns the Kind of a row with the given dtypes of the elements and of the step count.
func KindOf(elements, step DType) Kind { return Kind(elements) | Kind(step)<<8 }

// DType returns the dtype of the row's elements.
func (r *Row) DType() DType { return DType(r.Kind) }

func (r *Row) stepDType() DType { return DType(r.Kind >> 8) }

// NumberDType returns the dtype of scalar state i.
func (r *Row) NumberDType(i int) DType { return DType(r.Kind >> (32 + 8*i)) }

// First reports whether the row's state is uninitialized.
func (r *Row) First() bool { return r.Kind&First != 0 }

// Prefetch prefetches the first cache lines of the row's tensors, as many as the hardware prefetcher does not cover.
func (r *Row) Prefetch() {
	const most = 4
	lines := min(int(uint64(r.N)*uint64(r.DType())/16)+1, most)
	kernel.Prefetch((*[3 + States]uintptr)(unsafe.Pointer(&r.Param))[:], lines)
}

// Check returns an error if a row is invalid for a layout.
func (r *Row) Check(l Layout) error {
	size := int64(8)
	switch r.DType() {
	case Float32:
		size = 4
	case Float64:
	default:
		return fmt.Errorf("elements of %v; expected float32 or float64", r.DType())
	}
	if r.N < 0 || r.N > math.MaxInt64/size {
		return fmt.Errorf("%d elements", r.N)
	}
	if l.Counts {
		if err := checkNumber("the step", r.Step, r.stepDType()); err != nil {
			return err
		}
	}
	for i, use := range l.State {
		if use == Number {
			if err := checkNumber(stateNames[i], r.State[i], r.NumberDType(i)); err != nil {
				return err
			}
		}
	}
	if r.N == 0 {
		return nil
	}
	if err := checkAddress("the parameter", r.Param, r.N*size); err != nil {
		return err
	}
	if err := checkAddress("the gradient", r.Grad, r.N*size); err != nil {
		return err
	}
	for i, use := range l.State {
		if use == Column {
			if err := checkAddress(stateNames[i], r.State[i], r.N*size); err != nil {
				return err
			}
		}
	}
	return nil
}

var stateNames = [States]string{"state 0", "state 1", "state 2"}

func checkNumber(what string, a uintptr, d DType) error {
	if d != Float32 && d != Float64 {
		return fmt.Errorf("%s of %v; expected float32 or float64", what, d)
	}
	return checkAddress(what, a, 1)
}

// checkAddress rejects addresses that are not valid in any process: the first page, and ranges that wrap around.
func checkAddress(what string, a uintptr, bytes int64) error {
	if a < 4096 || a > math.MaxInt64-uintptr(bytes) {
		return fmt.Errorf("address %#x of %s", a, what)
	}
	return nil
}

// Steps returns the step count of a row whose layout has one.
func (r *Row) Steps() float64 { return number(r.Step, r.stepDType()) }

// SetSteps sets the step count.
func (r *Row) SetSteps(t float64) { setNumber(r.Step, r.stepDType(), t) }

// Tick increments the step count in its dtype, as torch does, and returns it.
func (r *Row) Tick() float64 {
	t := number(r.Step, r.stepDType()) + 1
	return setNumber(r.Step, r.stepDType(), t)
}

// Number returns scalar state i.
func (r *Row) Number(i int) float64 { return number(r.State[i], r.NumberDType(i)) }

// SetNumber sets scalar state i and returns the value rounded to its dtype.
func (r *Row) SetNumber(i int, x float64) float64 { return setNumber(r.State[i], r.NumberDType(i), x) }

func number(a uintptr, d DType) float64 {
	if d == Float32 {
		return float64(*(*float32)(Pointer(a)))
	}
	return *(*float64)(Pointer(a))
}

func setNumber(a uintptr, d DType, x float64) float64 {
	if d == Float32 {
		*(*float32)(Pointer(a)) = float32(x)
		return float64(float32(x))
	}
	*(*float64)(Pointer(a)) = x
	return x
}

// View returns elements lo to hi of a row's tensors. A state is nil if it is not a tensor in the layout.
func View[T any](r *Row, l Layout, lo, hi int) (param, grad []T, states [States][]T) {
	for i, use := range l.State {
		if use == Column {
			states[i] = column[T](r.State[i], lo, hi)
		}
	}
	return column[T](r.Param, lo, hi), column[T](r.Grad, lo, hi), states
}

func column[T any](address uintptr, lo, hi int) []T {
	return unsafe.Slice((*T)(Pointer(address)), hi)[lo:]
}

// Pointer converts an address to a pointer. The address must be foreign memory, or Go memory that the caller keeps alive.
func Pointer(address uintptr) unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Pointer(&address)) }
