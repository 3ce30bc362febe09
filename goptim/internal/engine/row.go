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

// The numbers are part of the layout of a Row. BFloat16 and Float16 are supported by layouts that are Narrow.
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

// Narrow reports whether elements have 16 bits.
func (d DType) Narrow() bool { return d == BFloat16 || d == Float16 }

// Narrow reports whether elements have 16 bits.
func (t *Types) Narrow() bool { return t.ParamType.Narrow() }

// inFloat32 reports whether the arithmetic is in float32.
func (d DType) inFloat32() bool { return d == Float32 || d.Narrow() }

// Format returns the type as a format of a kernel's buffers.
func (d DType) Format() kernel.Format {
	switch d {
	case BFloat16:
		return kernel.BFloat16
	case Float16:
		return kernel.Float16
	}
	return kernel.Float32
}

// Largest returns the largest finite number of the type, which has 16 bits.
func (d DType) Largest() float64 {
	if d == BFloat16 {
		return 0x1.fep127
	}
	return 65504
}

// Bits returns the encoding of x rounded to the type, which has 16 bits.
func (d DType) Bits(x float32) uint16 {
	if d == BFloat16 {
		return kernel.NarrowBFloat16(x)
	}
	return kernel.NarrowFloat16(x)
}

// Round returns x rounded to the type, as torch does: first to float32 unless the type is float64.
func (d DType) Round(x float64) float64 {
	switch d {
	case Float32:
		return float64(float32(x))
	case BFloat16:
		return float64(kernel.WidenBFloat16(kernel.NarrowBFloat16(float32(x))))
	case Float16:
		return float64(kernel.WidenFloat16(kernel.NarrowFloat16(float32(x))))
	}
	return x
}

const (
	// States is the number of states that a row has space for.
	States = 6
	// Columns is the maximum number of states that are passed to a kernel as tensors. They are the first ones.
	Columns = 4
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
	// The rows and columns of a matrix if the optimizer treats the parameter as a batch of matrices. Then, with the flag Stochastic,
	// the state MasterState is the index of the parameter in the optimizer. For other optimizers, Rows is the index. Otherwise they are 0.
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
	// Master marks a row whose state MasterState is a float32 copy of the parameter. The copy is stepped, and the parameter, which
	// is narrow, becomes its rounded value.
	Master Flags = 1 << 2
	// Stochastic marks a row whose parameter, which is narrow, is rounded with random numbers. It has a step count even if its
	// layout does not count.
	Stochastic Flags = 1 << 3
	// Kahan marks a row whose state MasterState is the compensation of the parameter, of the same narrow type: what it lacks.
	Kahan Flags = 1 << 4
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

// Counts reports whether a row has a step count.
func (t *Types) Counts(l *Layout) bool { return l.Counts || t.Flags&Stochastic != 0 }

// First reports whether the row's state is not initialized yet.
func (t *Types) First() bool { return t.Flags&First != 0 }

// DType returns the type of the parameter's elements.
func (t *Types) DType() DType { return t.ParamType }

// Arithmetic returns the type of the arithmetic on a row: Float64 if its elements are float64, or Float32.
func (t *Types) Arithmetic() DType {
	if t.ParamType == Float64 {
		return Float64
	}
	return Float32
}

// Uniform reports whether the tensors of a row are of the type of its parameter.
func (t *Types) Uniform() bool {
	for k, d := range t.StateType {
		if d != None && d != t.ParamType && t.Flags&ScalarState(k) == 0 {
			return false
		}
	}
	return true
}

// Mixed reports whether a row needs Operands: tensors are narrow, or differ in type.
func (t *Types) Mixed(l *Layout) bool {
	mixed := t.ParamType.Narrow()
	for k, use := range l.State[:Columns] {
		mixed = mixed || use == Column && t.StateType[k] != t.ParamType
	}
	return mixed
}

// A Layout describes the rows of an optimizer.
type Layout struct {
	Counts bool        // whether rows have a step count
	Single bool        // whether rows have one tensor, Param, and no gradient
	Narrow bool        // whether tensors can be BFloat16 or Float16, and states can differ in type from the parameter
	Used   int         // states from this one on are unused
	Every  int         // a state that is Sliced has an element for every Every-th one of the parameter
	State  [States]Use // its states
}

// A Use is the kind of a state.
type Use uint8

// A state is unused, a tensor of the parameter's length, a scalar, or a tensor with an element for some of the parameter's, which may
// be missing if Start. Kernels of rows do not get the last two.
const (
	Unused Use = iota
	Column
	Scalar
	Sliced
	Start
)

// Slices returns the number of elements of a state that is Sliced.
func (l *Layout) Slices(n int) int { return (n + l.Every - 1) / max(l.Every, 1) }

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
	kernel.Prefetch(r.addresses()[:l.addresses()], r.FirstLines())
}

// FirstLines returns the number of cache lines of a tensor that Prefetch prefetches.
func (r *Row) FirstLines() int { return min((int(r.N)*r.ParamType.Size()+63)/64, mostLines) }

// PrefetchFrom prefetches cache lines of each tensor of a row from element i on.
func (r *Row) PrefetchFrom(l *Layout, i, lines int) {
	at := *r.addresses()
	for k := range at {
		at[k] += uintptr(i * r.ParamType.Size())
	}
	kernel.Prefetch(at[:l.addresses()], lines)
}

// addresses are those of a row's parameter, gradient and states.
func (r *Row) addresses() *[2 + States]uintptr {
	return (*[2 + States]uintptr)(unsafe.Pointer(&r.Param))
}

// addresses returns the number of a row's addresses that are used.
func (l *Layout) addresses() int {
	if l.Single {
		return 1
	}
	return 2 + l.Used
}

// Check returns an error if the row is invalid for an optimizer with the given layout.
func (r *Row) Check(l *Layout) error {
	if r.ParamType != Float32 && r.ParamType != Float64 && !(l.Narrow && r.ParamType.Narrow()) {
		return typeError("elements", r.ParamType, l.Narrow)
	}
	size := int64(r.ParamType.Size())
	if r.N < 0 || r.N > math.MaxInt64/8 {
		return fmt.Errorf("%d elements", r.N)
	}
	expected := r.ParamType
	if l.Single {
		expected = None
	}
	if r.GradType != expected {
		return fmt.Errorf("a gradient of %v; expected %v", r.GradType, expected)
	}
	if r.Counts(l) {
		if err := checkScalar("the step", r.Step, r.StepType, l.Narrow); err != nil {
			return err
		}
	}
	for k, use := range l.State[:l.Used] {
		if use == Start && r.State[k] == 0 && r.StateType[k] == None {
			continue
		}
		if err := r.checkState(k, use, l.Narrow); err != nil {
			return err
		}
	}
	if r.Flags&stored != 0 {
		if err := r.checkStored(l); err != nil {
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
	return r.checkState(AverageState, Column, false)
}

// AverageOf returns elements lo to hi of the average of a row's parameter, or nil if it is missing.
func AverageOf[T any](r *Row, lo, hi int) []T {
	if r.State[AverageState] == 0 {
		return nil
	}
	return column[T](r.State[AverageState], lo, hi)
}

// AverageOperands returns the average of a row's parameter and the parameter, from element lo on. The average has no address if it
// is missing.
func AverageOperands(r *Row, lo int) (o kernel.Operands) {
	if r.State[AverageState] != 0 {
		o.Param = operand(r.State[AverageState], r.StateType[AverageState], lo)
	}
	o.Grad = operand(r.Param, r.ParamType, lo)
	return o
}

// PrefetchAverage prefetches cache lines of the average of the row's parameter from element i on.
func (r *Row) PrefetchAverage(i, lines int) {
	if at := r.State[AverageState]; at != 0 {
		kernel.Prefetch([]uintptr{at + uintptr(i*r.ParamType.Size())}, lines)
	}
}

// MasterState is the state that is the master copy of a row with the flag Master, or the compensation of one with the flag Kahan. No
// optimizer uses it then.
const MasterState = States - 2

// stored are the flags of which a row can have one.
const stored = Master | Stochastic | Kahan

var storedNames = map[Flags]string{Master: "a master copy", Stochastic: "stochastic rounding", Kahan: "a compensation"}

// checkStored checks a row with one of the flags.
func (r *Row) checkStored(l *Layout) error {
	flag, of := r.Flags&stored, r.ParamType
	if flag == Master {
		of = Float32
	}
	name, single := storedNames[flag]
	switch {
	case !single:
		return fmt.Errorf("flags %#x; expected one of %#x", flag, stored)
	case !l.Narrow || l.State[MasterState] != Unused:
		return fmt.Errorf("%s of the parameter; expected none", name)
	case !r.ParamType.Narrow():
		return fmt.Errorf("%s of %v; expected bfloat16 or float16", name, r.ParamType)
	case flag == Stochastic:
		return nil
	case r.StateType[MasterState] != of:
		return fmt.Errorf("%s in %v; expected %v", name, r.StateType[MasterState], of)
	}
	return r.checkState(MasterState, Column, true)
}

func typeError(what string, d DType, narrow bool) error {
	if narrow {
		return fmt.Errorf("%s of %v; expected float32, float64, bfloat16 or float16", what, d)
	}
	return fmt.Errorf("%s of %v; expected float32 or float64", what, d)
}

// checkState returns an error if a state is invalid. If narrow, it can have 16 bits, and differ in type from the parameter.
func (r *Row) checkState(k int, use Use, narrow bool) error {
	if use == Unused {
		return nil
	}
	scalar := r.Flags&ScalarState(k) != 0
	if scalar != (use == Scalar) {
		return fmt.Errorf("%s has the flag of a scalar: %t; expected %t", stateNames[k], scalar, !scalar)
	}
	if scalar {
		return checkScalar(stateNames[k], r.State[k], r.StateType[k], narrow)
	}
	if !r.Holds(k, narrow) {
		return fmt.Errorf("%s of %v; expected %v", stateNames[k], r.StateType[k], r.ParamType)
	}
	if r.N == 0 {
		return nil
	}
	return checkAddress(stateNames[k], r.State[k], r.N*int64(r.StateType[k].Size()))
}

// Holds reports whether the type of state k, a tensor, fits that of the parameter. If narrow, they can differ if the arithmetic on
// both is in float32.
func (r *Row) Holds(k int, narrow bool) bool {
	return r.StateType[k] == r.ParamType || (narrow && r.StateType[k].inFloat32() && r.ParamType.inFloat32())
}

var stateNames = [States]string{"state 0", "state 1", "state 2", "state 3", "state 4", "state 5"}

func checkScalar(what string, a uintptr, d DType, narrow bool) error {
	if d != Float32 && d != Float64 && !(narrow && d.Narrow()) {
		return typeError(what, d, narrow)
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
	switch d {
	case Float32:
		return float64(*(*float32)(Pointer(a)))
	case BFloat16:
		return float64(kernel.WidenBFloat16(*(*uint16)(Pointer(a))))
	case Float16:
		return float64(kernel.WidenFloat16(*(*uint16)(Pointer(a))))
	}
	return *(*float64)(Pointer(a))
}

func setNumber(a uintptr, d DType, x float64) float64 {
	switch d {
	case Float32:
		*(*float32)(Pointer(a)) = float32(x)
	case BFloat16:
		*(*uint16)(Pointer(a)) = kernel.NarrowBFloat16(float32(x))
	case Float16:
		*(*uint16)(Pointer(a)) = kernel.NarrowFloat16(float32(x))
	default:
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

// SliceOf returns elements lo to hi of a state that is Sliced, or nil if it is missing.
func SliceOf[T any](r *Row, k, lo, hi int) []T {
	if r.State[k] == 0 {
		return nil
	}
	return column[T](r.State[k], lo, hi)
}

// Operands returns the tensors of a row that is Mixed, from element lo on, like View, without the noise. With a master copy, this is
// the parameter, which is stored in the row's parameter too.
func Operands(r *Row, l *Layout, lo int) (o kernel.Operands) {
	for k, use := range l.State[:Columns] {
		if use == Column {
			o.State[k] = operand(r.State[k], r.StateType[k], lo)
		}
	}
	o.Param, o.Grad, o.First = operand(r.Param, r.ParamType, lo), operand(r.Grad, r.GradType, lo), lo
	addExtra(&o, r, lo)
	return o
}

// addExtra adds the master copy or the compensation of a row, from element lo on, to the row's parameter.
func addExtra(o *kernel.Operands, r *Row, lo int) {
	switch extra := r.State[MasterState]; {
	case r.Flags&Master != 0:
		o.Copy, o.Param = o.Param, operand(extra, Float32, lo)
	case r.Flags&Kahan != 0:
		o.Compensation = operand(extra, r.ParamType, lo)
	}
}

// Noise returns the noise of a row with the flag Stochastic, at a step after it was counted.
func (r *Row) Noise(seed uint64, step float64) kernel.Noise {
	if r.Flags&Stochastic == 0 {
		return kernel.Noise{}
	}
	return kernel.NoiseOf(seed, uint64(step), r.Rows)
}

// MatrixNoise is Noise for an optimizer that treats the parameter as a batch of matrices.
func (r *Row) MatrixNoise(seed uint64, step float64) kernel.Noise {
	if r.Flags&Stochastic == 0 {
		return kernel.Noise{}
	}
	return kernel.NoiseOf(seed, uint64(step), uint32(r.State[MasterState]))
}

// Stored returns the parameter of a row whose arithmetic is in float32, and what else is stored for it, without the noise.
func Stored(r *Row) (o kernel.Operands) {
	o.Param = operand(r.Param, r.ParamType, 0)
	addExtra(&o, r, 0)
	return o
}

// operand returns a buffer from element lo on.
func operand(address uintptr, d DType, lo int) kernel.Operand {
	return kernel.Operand{Address: unsafe.Add(Pointer(address), lo*d.Size()), Format: d.Format()}
}

// OperandOf returns a buffer of a type whose arithmetic is in float32. The address may be 0 for none.
func OperandOf(address uintptr, d DType) kernel.Operand { return operand(address, d, 0) }

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
