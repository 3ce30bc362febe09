// Package engine takes the rows of one optimizer step and spreads their elements over threads.
package engine

import (
	"fmt"
	"math"
	"unsafe"

	"github.com/goptim/goptim/goptim/internal/kernel"
)

// A DType is the type of a row's elements.
type DType uint8

// The numbers are part of the layout of a Row.
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

// Size is the size of an element in bytes.
func (d DType) Size() int {
	if d == Float32 {
		return 4
	}
	return 8
}

// States is how many states a row has room for.
const States = 3

// A Row is one parameter: the addresses of its columns, each of N elements. Callers in other languages fill tables
// of it, so its layout is fixed: eight 64-bit words. The engine never keeps a row after the step.
type Row struct {
	N     int64
	Kind  Kind
	Param uintptr
	Grad  uintptr
	Step  uintptr         // of one number: how many steps this parameter has seen; 0 for optimizers that do not count
	State [States]uintptr // of a column, or of one number; 0 for none
}

// A Kind packs a row's small facts: the elements' dtype in bits 0 to 7, the dtype of Step in bits 8 to 15, First in bit
// 16, and from bit 32 on eight bits for the dtype of each state that is one number.
type Kind uint64

// First marks a row whose state holds nothing yet.
const First Kind = 1 << 16

// NumberKind is what a state that is one number adds to the Kind of its row.
func NumberKind(state int, d DType) Kind { return Kind(d) << (32 + 8*state) }

// A Layout is what an optimizer needs in its rows.
type Layout struct {
	Counts bool        // a step
	State  [States]Use // its states
}

// A Use is what a state is.
type Use uint8

// A state is unused, a column of the parameter's length, or one number.
const (
	Unused Use = iota
	Column
	Number
)

// KindOf is the Kind of a row of elements, counted by a step.
func KindOf(elements, step DType) Kind { return Kind(elements) | Kind(step)<<8 }

// DType is the type of the row's elements.
func (r *Row) DType() DType { return DType(r.Kind) }

func (r *Row) stepDType() DType { return DType(r.Kind >> 8) }

// NumberDType is the type of state i, which is one number.
func (r *Row) NumberDType(i int) DType { return DType(r.Kind >> (32 + 8*i)) }

// First reports whether the row's state holds nothing yet.
func (r *Row) First() bool { return r.Kind&First != 0 }

// Prefetch asks for the beginnings of the row's columns, as many cache lines as the processor's own prefetcher leaves to
// be asked for.
func (r *Row) Prefetch() {
	const most = 4
	lines := min(int(uint64(r.N)*uint64(r.DType())/16)+1, most)
	kernel.Prefetch((*[3 + States]uintptr)(unsafe.Pointer(&r.Param))[:], lines)
}

// Check reports what is wrong with a row for an optimizer of a layout.
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

// checkAddress refuses what cannot be memory of the process: the first page, and what wraps around.
func checkAddress(what string, a uintptr, bytes int64) error {
	if a < 4096 || a > math.MaxInt64-uintptr(bytes) {
		return fmt.Errorf("address %#x of %s", a, what)
	}
	return nil
}

// Steps is how many steps the row has seen, which must be a layout's that counts.
func (r *Row) Steps() float64 { return number(r.Step, r.stepDType()) }

// SetSteps sets how many steps the row has seen.
func (r *Row) SetSteps(t float64) { setNumber(r.Step, r.stepDType(), t) }

// Tick counts one more step, in the dtype of the row's step as torch does, and returns the new count.
func (r *Row) Tick() float64 {
	t := number(r.Step, r.stepDType()) + 1
	return setNumber(r.Step, r.stepDType(), t)
}

// Number is state i, which is one number.
func (r *Row) Number(i int) float64 { return number(r.State[i], r.NumberDType(i)) }

// SetNumber sets state i, which is one number, and returns it as rounded to its dtype.
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

// View gives elements lo to hi of a row's columns; nil for a state that the layout has no column of.
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

// Pointer makes a pointer of an address that Go's collector does not move: memory of another language, or Go memory
// that the caller keeps alive.
func Pointer(address uintptr) unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Pointer(&address)) }
