package goptim

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"unsafe"

	"github.com/goptim/goptim/goptim/internal/cpow"
	"github.com/goptim/goptim/goptim/internal/engine"
)

// Float is the type of a parameter's elements.
type Float interface{ ~float32 | ~float64 }

// A Param is one tensor to optimize, in any shape, laid out as a slice. Params may share memory, as a gradient that is
// another one's value: an optimizer then steps them one after the other, in their order.
type Param[T Float] struct {
	Name  string // for error messages; may be empty
	Value []T    // changed in place by Step
	Grad  []T    // as long as Value, of other memory, and only read; nil leaves the parameter out of the step
	Shape []int  // of Value in row-major order, for optimizers that see matrices; nil is a vector
}

// The errors of this package wrap one of these.
var (
	// ErrOption is a hyperparameter out of its range.
	ErrOption = errors.New("invalid option")
	// ErrParam is a parameter, gradient or state that does not fit.
	ErrParam = errors.New("invalid parameter")
)

// require is nil if ok; else an ErrOption that says what was expected of which option. The comparisons behind ok
// are written so that a NaN fails.
func require(ok bool, optimizer, option string, got float64, expected string) error {
	if ok {
		return nil
	}
	return fmt.Errorf("goptim: %s: %s is %v, expected %s: %w", optimizer, option, got, expected, ErrOption)
}

// base is what every optimizer for Go programs has: its parameters, their states, and the rows made of them.
type base[T Float, S any] struct {
	params []*Param[T]
	states []state[T]
	rows   []engine.Row
	pass   pass[S]
}

// state is what an optimizer keeps of one parameter.
type state[T Float] struct {
	step    float32 // as torch keeps it
	numbers [engine.States]float32
	columns [engine.States][]T
	made    bool
}

// newBase checks the rule and the parameters.
func newBase[T Float, S any](r rule[S], params []*Param[T]) (base[T, S], error) {
	b := base[T, S]{params: slices.Clone(params), states: make([]state[T], len(params)), rows: make([]engine.Row, 0, len(params))}
	if err := r.check(); err != nil {
		return b, err
	}
	return b, checkParams(r.name(), params)
}

func checkParams[T Float](name string, params []*Param[T]) error {
	if len(params) == 0 {
		return fmt.Errorf("goptim: %s: no parameters: %w", name, ErrParam)
	}
	seen := make(map[*Param[T]]bool, len(params))
	for i, p := range params {
		if p == nil {
			return fmt.Errorf("goptim: %s: parameter %d is nil: %w", name, i, ErrParam)
		}
		if seen[p] {
			return fmt.Errorf("goptim: %s: %s is given twice: %w", name, p.describe(i), ErrParam)
		}
		seen[p] = true
	}
	return nil
}

func (p *Param[T]) describe(i int) string {
	if p.Name != "" {
		return fmt.Sprintf("parameter %d (%s)", i, p.Name)
	}
	return fmt.Sprintf("parameter %d", i)
}

// step updates every parameter that has a gradient, on as many as threads threads. On an error that wraps ErrOption or
// ErrParam nothing has changed.
func (b *base[T, S]) step(r rule[S], threads int) error {
	if err := errors.Join(r.check(), b.check(r.name())); err != nil {
		return err
	}
	incomplete := b.gather(r)
	if threads <= 0 {
		threads = runtime.GOMAXPROCS(0)
	}
	if err := b.scalars(r); err != nil {
		return err
	}
	b.pass.commit()
	if incomplete {
		b.makeStates(r)
	}
	err := engine.Run(&b.pass, b.rows, threads, nil)
	runtime.KeepAlive(b) // the rows hold addresses
	if err != nil {
		return fmt.Errorf("goptim: %s: %w", r.name(), err)
	}
	return nil
}

// scalars computes the scalars of the rows, and counts the step. On an error nothing has changed.
func (b *base[T, S]) scalars(r rule[S]) error {
	b.pass.begin(r.kernels(), b.rows)
	err := b.pass.add(r, len(b.rows), now{pow: cpow.Pow})
	if err != nil {
		b.pass.restore()
	}
	return err
}

// checkAll reports what step would refuse.
func (b *base[T, S]) checkAll(r rule[S]) error {
	if err := errors.Join(r.check(), b.check(r.name())); err != nil {
		return err
	}
	b.gather(r)
	err := b.scalars(r)
	b.pass.restore()
	return err
}

func (b *base[T, S]) check(name string) error {
	for i, p := range b.params {
		if overlap(p.Value, p.Grad) {
			return p.errOverlap(name, i)
		}
		if p.Grad != nil && len(p.Grad) != len(p.Value) {
			return fmt.Errorf("goptim: %s: %s: the gradient has %d elements, expected %d: %w",
				name, p.describe(i), len(p.Grad), len(p.Value), ErrParam)
		}
		for _, c := range b.states[i].columns {
			if c != nil && len(c) != len(p.Value) {
				return fmt.Errorf("goptim: %s: %s has %d elements, expected %d as at the last step: %w",
					name, p.describe(i), len(p.Value), len(c), ErrParam)
			}
		}
	}
	return nil
}

// gather makes the rows of one step: of every parameter that has a gradient, with the states that the rule's layout
// names. Where one is missing, it reports incomplete, and makeStates completes the rows.
func (b *base[T, S]) gather(r rule[S]) (incomplete bool) {
	layout := r.layout()
	b.rows = b.rows[:0]
	for i, p := range b.params {
		if p.Grad == nil {
			continue
		}
		s := &b.states[i]
		row := engine.Row{
			N:     int64(len(p.Value)),
			Kind:  engine.KindOf(dtype[T](), engine.Float32),
			Param: address(p.Value),
			Grad:  address(p.Grad),
			Step:  uintptr(unsafe.Pointer(&s.step)),
		}
		for k, use := range layout.State {
			switch use {
			case engine.Column:
				if s.columns[k] == nil {
					row.Kind |= engine.First
				}
				row.State[k] = address(s.columns[k])
			case engine.Number:
				if !s.made {
					s.numbers[k] = float32(r.initial(k))
				}
				row.Kind |= engine.NumberKind(k, engine.Float32)
				row.State[k] = uintptr(unsafe.Pointer(&s.numbers[k]))
			}
		}
		incomplete = incomplete || !s.made || row.First()
		b.rows = append(b.rows, row)
	}
	return incomplete
}

// makeStates makes the states that are missing in the rows.
func (b *base[T, S]) makeStates(r rule[S]) {
	layout, at := r.layout(), 0
	for i, p := range b.params {
		if p.Grad == nil {
			continue
		}
		s := &b.states[i]
		for k, use := range layout.State {
			if use == engine.Column && s.columns[k] == nil {
				s.columns[k] = slices.Repeat([]T{T(r.initial(k))}, len(p.Value))
				b.rows[at].State[k] = address(s.columns[k])
			}
		}
		s.made = true
		at++
	}
}

// overlap reports whether two slices share memory.
func overlap[T Float](a, b []T) bool {
	size := unsafe.Sizeof(T(0))
	return len(a) > 0 && len(b) > 0 && address(a) < address(b)+uintptr(len(b))*size && address(b) < address(a)+uintptr(len(a))*size
}

func (p *Param[T]) errOverlap(optimizer string, i int) error {
	return fmt.Errorf("goptim: %s: %s: the gradient shares memory with the value: %w", optimizer, p.describe(i), ErrParam)
}

func dtype[T Float]() engine.DType {
	if unsafe.Sizeof(T(0)) == 4 {
		return engine.Float32
	}
	return engine.Float64
}

func address[T Float](s []T) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(s))) }
