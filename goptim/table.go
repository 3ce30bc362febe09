package goptim

import (
	"fmt"
	"unsafe"

	"github.com/goptim/goptim/goptim/internal/cpow"
	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/goptim/internal/kernel"
)

// A Table is the work of one step in memory that another language owns: an optimizer's options step it in place,
// and the caller keeps all state. It is for bindings; a Go program uses an optimizer's New function.
//
// A row is eight 64-bit words:
//
//	0  the number of elements
//	1  their dtype (1 float32, 2 float64); plus 256 times the dtype of the step; plus 65536 if the state is new; plus,
//	   for a state i that is one number, its dtype times 2 to the power of 32+8i
//	2  the address of the parameter
//	3  the address of the gradient
//	4  the address of the step, one number, which is increased; 0 for SGD
//	5  the addresses of three states, in the order that the optimizer names; 0 for one that its options do without.
//	   Adafactor has a shape in the place of the third
//
// Columns are dense and laid out alike; the caller answers for the addresses.
type Table struct {
	Address uintptr // of the first row
	Rows    int
	Threads int // as many threads as may work on the step
	// Team, if the caller has threads at hand, calls work on as many as threads of them at the same time, one being
	// the caller's, with the number of the thread from 0, or -1, and returns when every call has returned; nil: this
	// package's own threads.
	Team       func(threads int, work func(thread int))
	FusedNorms bool                       // this torch's compiler fused all squares into a norm, as torch 2.6's did
	Float64    bool                       // torch's default dtype is float64: a new number of a state is not rounded to float32
	Pow        func(x, y float64) float64 // C's pow, if the caller has it; nil: this package's own
	OnlyCheck  bool                       // report the errors of the rows and the scalars, and leave everything as it is
}

// rows views the table and checks every row before anything is written.
func (t Table) rows(optimizer string, l engine.Layout) ([]engine.Row, error) {
	if t.Rows == 0 {
		return nil, nil
	}
	if t.Rows < 0 || t.Address < 4096 || t.Address%8 != 0 {
		return nil, fmt.Errorf("goptim: %s: a table of %d rows at %#x: %w", optimizer, t.Rows, t.Address, ErrParam)
	}
	rows := unsafe.Slice((*engine.Row)(engine.Pointer(t.Address)), t.Rows)
	for i := range rows {
		if err := rows[i].Check(l); err != nil {
			return nil, fmt.Errorf("goptim: %s: row %d: %w: %w", optimizer, i, err, ErrParam)
		}
	}
	return rows, nil
}

func (t Table) pow() func(x, y float64) float64 {
	if t.Pow != nil {
		return t.Pow
	}
	return cpow.Pow
}

// TableOptions are the options of an optimizer that treats every element alike.
type TableOptions[O any] interface {
	stepTables(options []O, tables []Table) error
}

// StepTables runs one step over the tables of several groups, each by its own options, as one piece of work: every
// thread has its share of all, however small the groups are. Threads and Team are the first table's. On an error that
// wraps ErrParam or ErrOption nothing has changed.
func StepTables[O TableOptions[O]](options []O, tables []Table) error {
	var o O
	return o.stepTables(options, tables)
}

// VectorBits is the width of the vectors that this process computes with: 512, 256 or 128; 0 if it takes one element
// at a time, for want of vectors or of GOEXPERIMENT=simd.
func VectorBits() int { return kernel.VectorBits() }
