// Package engine takes the rows of one optimizer step and spreads their elements over threads.
package engine

import (
	"fmt"
	"math"
	"unsafe"
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

// A Row is one parameter: the addresses of its columns, each of N elements. Callers in other languages fill tables
// of it, so its layout is fixed: eight 64-bit words. The engine never keeps a row after the step.
type Row struct {
	N     int64
	Kind  Kind
	Param uintptr
	Grad  uintptr
	Step  uintptr // of one number: how many steps this parameter has seen; 0 for optimizers that do not count
	State [3]uintptr
}

// A Kind packs a row's small facts: the elements' dtype in bits 0 to 7, the dtype of Step in bits 8 to 15, and
// First in bit 16.
type Kind uint64

// First marks a row whose state holds nothing yet.
const First Kind = 1 << 16

// KindOf is the Kind of a row of elements, counted by a step.
func KindOf(elements, step DType) Kind { return Kind(elements) | Kind(step)<<8 }

// DType is the type of the row's elements.
func (r *Row) DType() DType { return DType(r.Kind) }

func (r *Row) stepDType() DType { return DType(r.Kind >> 8) }

// First reports whether the row's state holds nothing yet.
func (r *Row) First() bool { return r.Kind&First != 0 }

// Check reports what is wrong with a row whose optimizer needs the first states columns, and a step if counts.
func (r *Row) Check(states int, counts bool) error {
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
	if counts {
		if d := r.stepDType(); d != Float32 && d != Float64 {
			return fmt.Errorf("a step of %v; expected float32 or float64", d)
		}
		if err := checkAddress("step", r.Step, 1); err != nil {
			return err
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
	for i, a := range r.State[:states] {
		if err := checkAddress(fmt.Sprintf("state %d", i), a, r.N*size); err != nil {
			return err
		}
	}
	return nil
}

// checkAddress refuses what cannot be memory of the process: the first page, and what wraps around.
func checkAddress(what string, a uintptr, bytes int64) error {
	if a < 4096 || a > math.MaxInt64-uintptr(bytes) {
		return fmt.Errorf("address %#x of %s", a, what)
	}
	return nil
}

// Tick counts one more step, in the dtype of the row's step as torch does, and returns the new count.
func (r *Row) Tick() float64 {
	if r.stepDType() == Float32 {
		t := (*float32)(Pointer(r.Step))
		*t++
		return float64(*t)
	}
	t := (*float64)(Pointer(r.Step))
	*t++
	return *t
}

// View gives elements lo to hi of a row's columns; nil for a state that the row does not have.
func View[T any](r *Row, lo, hi int) (param, grad []T, states [3][]T) {
	for i, a := range r.State {
		if a != 0 {
			states[i] = column[T](a, lo, hi)
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
