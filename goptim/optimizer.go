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

// A Param is one tensor to optimize, of any shape, stored as a slice. Params may share memory, for example if a gradient is
// the value of another Param. The optimizer then steps them one after another, in their order.
type Param[T Element] struct {
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
type elementwise[T Element, O, S any] struct {
	Storage // used by the next Step; may be changed between steps

	self    *elementwise[T, O, S] // detects a copy, which would use the options of the original
	rule    bound[O, S]
	workers *int
	params  []*Param[T]
	states  []paramState
	rows    []engine.Row
	pass    pass[S]
	first   int // the index of the first parameter, among those of Groups
}

// paramState is the state of one parameter of an elementwise optimizer.
type paramState struct {
	step    float32 // float32, as in torch
	numbers [engine.States]float32
	count   float64                // the step if it is an integer in torch
	doubles [engine.States]float64 // also of the type of the elements
	columns [engine.States]stored
	extras
	made bool
}

// begin initializes an optimizer with a spec, options and parameters. It replaces zero options by defaults.
func (e *elementwise[T, O, S]) begin(s *spec[O, S], o *O, workers *int, params []*Param[T]) error {
	s.setAllDefaults(o)
	*e = elementwise[T, O, S]{
		self: e, rule: bound[O, S]{s, o}, workers: workers, params: slices.Clone(params),
		states: make([]paramState, len(params)), rows: make([]engine.Row, 0, len(params)),
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

func checkParams[T Element](name string, params []*Param[T]) error {
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
	if e.pass.kernels.estimate == nil { // it decides whether the step counts
		e.pass.Prepare()
	}
	if incomplete {
		e.makeStates()
	}
	err := e.pass.process(threadsOf(*e.workers), nil)
	runtime.KeepAlive(e) // the rows contain addresses
	if err != nil {
		return fmt.Errorf("goptim: %s: %w", e.rule.name(), err)
	}
	if e.rule.advance != nil {
		e.pass.context = stepContext{log: &e.pass.log, pow: cpow.Pow}
		e.rule.advance(e.rule.o, &e.pass.context)
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
	return e.pass.add(&e.rule, len(e.rows), stepContext{pow: cpow.Pow, seed: e.Seed})
}

func (e *elementwise[T, O, S]) check() error {
	if err := e.usable(); err != nil {
		return err
	}
	err := errors.Join(e.rule.checkOptions(e.rule.o), e.checkStorage(), e.checkValues())
	if err == nil && e.rule.ready != nil {
		err = e.rule.ready(e.rule.o)
	}
	return err
}

// checkStorage returns an error if the fields of Storage are invalid, or set for an optimizer that does not support them.
func (e *elementwise[T, O, S]) checkStorage() error {
	if !e.rule.stored() && e.Storage != (Storage{}) {
		return fmt.Errorf("goptim: %s: a field of Storage is set, expected none: %w", e.rule.name(), ErrOption)
	}
	return e.Storage.check(e.rule.name())
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
		s := &e.states[i]
		for k := range s.columns {
			if err := e.checkColumn(&s.columns[k], i, e.rule.elements(e.rule.o, k, len(p.Value))); err != nil {
				return err
			}
		}
		if err := errors.Join(e.checkColumn(&s.master, i, len(p.Value)), e.checkColumn(&s.rest, i, len(p.Value))); err != nil {
			return err
		}
	}
	return nil
}

// checkColumn returns an error if a state of parameter i does not have n elements.
func (e *elementwise[T, O, S]) checkColumn(c *stored, i, n int) error {
	if p := e.params[i]; c.made() && c.n != n {
		return fmt.Errorf("goptim: %s: %s has %d elements, expected %d as at the last step: %w", e.rule.name(), p.describe(i), len(p.Value), c.n, ErrParam)
	}
	return nil
}

// gather builds the rows of a step, one per parameter with a gradient, with the states that the options require. If a state
// is missing, it returns true, and makeStates completes the rows.
func (e *elementwise[T, O, S]) gather() (incomplete bool) {
	layout, stateType := e.rule.layout(), e.stateType(dtype[T]())
	flag, extra := e.flags(dtype[T]())
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
		if e.rule.integer {
			row.Step, row.StepType = engine.Address(unsafe.Pointer(&s.count)), engine.Float64
		}
		for k, use := range layout.State {
			switch use {
			case engine.Column, engine.Sliced, engine.Start:
				c := &s.columns[k]
				if !c.made() {
					row.Flags |= engine.First
				}
				incomplete = incomplete || c.d != stateType
				row.State[k], row.StateType[k] = c.address(), stateType
			case engine.Scalar:
				if e.rule.states[k].double {
					row.AddScalar(k, engine.Float64)
					row.State[k] = engine.Address(unsafe.Pointer(&s.doubles[k]))
					continue
				}
				if e.rule.states[k].typed {
					if !s.made {
						s.doubles[k] = dtype[T]().Round(e.rule.initial(e.rule.o, k))
					}
					row.AddScalar(k, engine.Float64)
					row.State[k] = engine.Address(unsafe.Pointer(&s.doubles[k]))
					continue
				}
				if !s.made {
					s.numbers[k] = float32(e.rule.initial(e.rule.o, k))
				}
				row.AddScalar(k, engine.Float32)
				row.State[k] = engine.Address(unsafe.Pointer(&s.numbers[k]))
			}
		}
		c := e.addStorage(&row, i)
		incomplete = incomplete || (c != nil && c.d != extra)
		incomplete = incomplete || !s.made || row.First() || (flag == 0 && (s.master.made() || s.rest.made()))
		e.rows = append(e.rows, row)
	}
	return incomplete
}

// addStorage adds what the Storage requires to the row of parameter i, and returns the state in it, or nil.
func (e *elementwise[T, O, S]) addStorage(row *engine.Row, i int) *stored {
	flag, extra := e.flags(dtype[T]())
	if row.Flags |= flag; flag == engine.Stochastic {
		row.Rows = uint32(e.first + i)
	}
	c := e.states[i].extra(flag)
	if c != nil {
		row.State[engine.MasterState], row.StateType[engine.MasterState] = c.address(), extra
	}
	return c
}

// stateType is that of Storage, unless the states of parameters of 16 bits are float32 by default.
func (e *elementwise[T, O, S]) stateType(of engine.DType) engine.DType {
	if states := e.rule.states; of.Narrow() && e.StateType == StateAsParam && len(states) > 0 && states[0].narrow != "" {
		return engine.Float32
	}
	return e.Storage.stateType(of)
}

// startAt sets the index of the first parameter, on which random numbers depend.
func (e *elementwise[T, O, S]) startAt(first int) { e.first = first }

// makeStates creates the states that are missing in the rows, and converts those of another type.
func (e *elementwise[T, O, S]) makeStates() {
	layout, at, stateType := e.rule.layout(), 0, e.stateType(dtype[T]())
	flag, extra := e.flags(dtype[T]())
	for i, p := range e.params {
		if p.Grad == nil {
			continue
		}
		s := &e.states[i]
		for k, use := range layout.State {
			if use == engine.Unused || use == engine.Scalar {
				continue
			}
			switch c := &s.columns[k]; {
			case c.made():
				*c = c.as(stateType)
			case e.rule.states[k].copied:
				*c = storedEvery(p.Value, e.rule.every(e.rule.o, k))
				*c = c.as(stateType)
			default:
				*c = makeStored(stateType, e.rule.elements(e.rule.o, k, len(p.Value)), e.rule.initial(e.rule.o, k))
			}
			e.rows[at].State[k] = s.columns[k].address()
		}
		if c := makeExtra(&s.extras, p.Value, flag, extra); c != nil {
			e.rows[at].State[engine.MasterState] = c.address()
		}
		s.made = true
		at++
	}
}

// overlap reports whether two slices share memory.
func overlap[T Element](a, b []T) bool {
	size := unsafe.Sizeof(T(0))
	return len(a) > 0 && len(b) > 0 && address(a) < address(b)+uintptr(len(b))*size && address(b) < address(a)+uintptr(len(a))*size
}

func (p *Param[T]) errOverlap(optimizer string, i int) error {
	return fmt.Errorf("goptim: %s: %s: the gradient shares memory with the value: %w", optimizer, p.describe(i), ErrParam)
}

func address[T Element](s []T) uintptr { return engine.Address(unsafe.Pointer(unsafe.SliceData(s))) }
