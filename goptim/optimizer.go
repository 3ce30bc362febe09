package goptim

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"unsafe"

	"github.com/goptim/goptim/goptim/internal/cpow"
	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/internal/steps"
)

func init() { steps.VectorBits = kernel.VectorBits() }

// Float is the type of a parameter's elements.
type Float interface{ ~float32 | ~float64 }

// A Param is one tensor to optimize, of any shape, stored as a slice. Params may share memory, for example if a gradient is
// the value of another Param. The optimizer then steps them one after another, in their order.
type Param[T Float] struct {
	Name  string // for error messages; may be empty
	Value []T    // changed in place by Step
	Grad  []T    // only read; has the length of Value, and must not overlap it; nil excludes the parameter from the step
	Shape []int  // of Value in row-major order, for optimizers of matrices; nil is a vector
}

// Errors of this package wrap one of these.
var (
	// ErrOption reports a hyperparameter that is out of range.
	ErrOption = errors.New("invalid option")
	// ErrParam reports an invalid parameter, gradient or state.
	ErrParam = errors.New("invalid parameter")
)

// elementwise is embedded in each elementwise optimizer. It has the parameters, their states and the methods of an
// Optimizer. The options are fields of the embedding struct.
type elementwise[T Float, O, S any] struct {
	self    *elementwise[T, O, S] // detects a copy, which would use the options of the original
	rule    bound[O, S]
	workers *int
	params  []*Param[T]
	states  []paramState[T]
	rows    []engine.Row
	pass    pass[S]
}

// paramState is the state of one parameter of an elementwise optimizer.
type paramState[T Float] struct {
	step    float32 // float32, as in torch
	numbers [engine.States]float32
	columns [engine.States][]T
	made    bool
}

// begin initializes an optimizer with a spec, options and parameters. It replaces zero options by defaults.
func (e *elementwise[T, O, S]) begin(s *spec[O, S], o *O, workers *int, params []*Param[T]) error {
	s.setDefaults(o)
	*e = elementwise[T, O, S]{
		self: e, rule: bound[O, S]{s, o}, workers: workers, params: slices.Clone(params),
		states: make([]paramState[T], len(params)), rows: make([]engine.Row, 0, len(params)),
	}
	if err := s.checkOptions(o); err != nil {
		return err
	}
	return checkParams(s.nameOf(o), params)
}

// made returns the results of a New function.
func made[A any](a *A, err error) (*A, error) {
	if err != nil {
		return nil, err
	}
	return a, nil
}

// checkSelf returns an error for an optimizer that was not constructed by its New function.
func checkSelf(ok bool) error {
	if !ok {
		return fmt.Errorf("goptim: an optimizer was not made by its New function, or is a copy of another one: %w", ErrParam)
	}
	return nil
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

// threadsOf returns the number of threads that Workers allows.
func threadsOf(workers int) int {
	if workers <= 0 {
		return runtime.GOMAXPROCS(0)
	}
	return workers
}

// Step updates each parameter that has a gradient. If the error wraps ErrOption or ErrParam, nothing has changed.
func (e *elementwise[T, O, S]) Step() error {
	if err := e.check(); err != nil {
		return err
	}
	incomplete := e.gather()
	if err := e.scalars(); err != nil {
		return err
	}
	e.pass.Prepare()
	if incomplete {
		e.makeStates()
	}
	err := engine.Run(&e.pass, e.rows, threadsOf(*e.workers), nil)
	runtime.KeepAlive(e) // the rows contain addresses
	if err != nil {
		return fmt.Errorf("goptim: %s: %w", e.rule.name(), err)
	}
	return nil
}

// Check returns the error that Step would return for bad input.
func (e *elementwise[T, O, S]) Check() error {
	if err := e.check(); err != nil {
		return err
	}
	e.gather()
	return e.scalars()
}

// scalars computes the scalars of the rows.
func (e *elementwise[T, O, S]) scalars() error {
	e.pass.begin(e.rule.kernels(), e.rows)
	return e.pass.add(&e.rule, len(e.rows), now{pow: cpow.Pow})
}

func (e *elementwise[T, O, S]) check() error {
	if err := e.usable(); err != nil {
		return err
	}
	if err := errors.Join(e.rule.checkOptions(e.rule.o), e.checkValues()); err != nil {
		return err
	}
	return nil
}

func (e *elementwise[T, O, S]) checkValues() error {
	for i, p := range e.params {
		if overlap(p.Value, p.Grad) {
			return p.errOverlap(e.rule.name(), i)
		}
		if p.Grad != nil && len(p.Grad) != len(p.Value) {
			return fmt.Errorf("goptim: %s: %s: the gradient has %d elements, expected %d: %w",
				e.rule.name(), p.describe(i), len(p.Grad), len(p.Value), ErrParam)
		}
		for _, c := range e.states[i].columns {
			if c != nil && len(c) != len(p.Value) {
				return fmt.Errorf("goptim: %s: %s has %d elements, expected %d as at the last step: %w",
					e.rule.name(), p.describe(i), len(p.Value), len(c), ErrParam)
			}
		}
	}
	return nil
}

// gather builds the rows of a step, one per parameter with a gradient, with the states that the options require. If a state
// is missing, it returns true, and makeStates completes the rows.
func (e *elementwise[T, O, S]) gather() (incomplete bool) {
	layout := e.rule.layout()
	e.rows = e.rows[:0]
	for i, p := range e.params {
		if p.Grad == nil {
			continue
		}
		s := &e.states[i]
		row := engine.Row{
			N:     int64(len(p.Value)),
			Types: engine.TypesOf(dtype[T](), engine.Float32),
			Param: address(p.Value),
			Grad:  address(p.Grad),
			Step:  engine.Address(unsafe.Pointer(&s.step)),
		}
		for k, use := range layout.State {
			switch use {
			case engine.Column:
				if s.columns[k] == nil {
					row.Flags |= engine.First
				}
				row.State[k], row.StateType[k] = address(s.columns[k]), dtype[T]()
			case engine.Scalar:
				if !s.made {
					s.numbers[k] = float32(e.rule.initial(e.rule.o, k))
				}
				row.AddScalar(k, engine.Float32)
				row.State[k] = engine.Address(unsafe.Pointer(&s.numbers[k]))
			}
		}
		incomplete = incomplete || !s.made || row.First()
		e.rows = append(e.rows, row)
	}
	return incomplete
}

// makeStates creates the states that are missing in the rows.
func (e *elementwise[T, O, S]) makeStates() {
	layout, at := e.rule.layout(), 0
	for i, p := range e.params {
		if p.Grad == nil {
			continue
		}
		s := &e.states[i]
		for k, use := range layout.State {
			if use == engine.Column && s.columns[k] == nil {
				s.columns[k] = slices.Repeat([]T{T(e.rule.initial(e.rule.o, k))}, len(p.Value))
				e.rows[at].State[k] = address(s.columns[k])
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

func address[T Float](s []T) uintptr { return engine.Address(unsafe.Pointer(unsafe.SliceData(s))) }
