package goptim

import (
	"errors"
	"math"
	"unsafe"

	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/goptim/internal/safetensors"
	"github.com/goptim/goptim/internal/steps"
)

// accepted returns the classes of torch whose saved states are accepted with these options, the own class first.
func (c *class[O]) accepted(o *O) []string {
	switch {
	case c.variant == "":
		return []string{c.name}
	case c.nameOf(o) == c.name:
		return []string{c.name, c.variant}
	default:
		return []string{c.variant, c.name}
	}
}

// load returns the saved options. Options that were not saved are as in o.
func (c *class[O]) load(saved *savedGroup, o O) (*O, error) {
	if err := errors.Join(saved.expect(c.accepted(&o)...), saved.decode(c.options(&o))); err != nil {
		return nil, err
	}
	if saved.class == c.variant && c.flagged != nil { // named by the class, in a version of torch without the flag
		c.flagged.set(unsafe.Pointer(&o), 0, 1)
	}
	return &o, nil
}

// MarshalBinary encodes the options and the state. See Stateful.
func (e *elementwise[T, O, S]) MarshalBinary() ([]byte, error) { return marshal(e) }

// UnmarshalBinary restores the options and the state. See Stateful.
func (e *elementwise[T, O, S]) UnmarshalBinary(data []byte) error { return unmarshal(e, data) }

func (e *elementwise[T, O, S]) groups() []group   { return []group{e} }
func (e *elementwise[T, O, S]) usable() error     { return checkSelf(e.self == e) }
func (e *elementwise[T, O, S]) className() string { return e.rule.name() }
func (e *elementwise[T, O, S]) options() []option {
	return append(e.rule.options(e.rule.o), e.Storage.options()...)
}
func (e *elementwise[T, O, S]) handles() []handle { return handlesOf(e.params) }
func (e *elementwise[T, O, S]) ordered() bool     { return false }

func (e *elementwise[T, O, S]) tensors(param int) (all []safetensors.Tensor) {
	s, shape := &e.states[param], e.params[param].shape()
	if !s.made {
		return nil
	}
	layout := e.rule.layout()
	flag, _ := e.flags(dtype[T]())
	switch {
	case e.rule.integer:
		all = append(all, integerOf("step", int(s.count)))
	case layout.Counts || flag == engine.Stochastic:
		all = append(all, scalarOf("step", s.step))
	}
	all = append(all, s.extras.tensors(shape)...)
	for k := range e.rule.states {
		if key := e.rule.states[k].key; s.columns[k].made() {
			of := shape
			if e.rule.states[k].sliced() {
				of = []int{s.columns[k].n}
			}
			all = append(all, s.columns[k].tensor(key, of))
		} else if e.rule.states[k].double {
			all = append(all, scalarOf(key, s.doubles[k]))
		} else if e.rule.states[k].typed {
			number := makeStored(dtype[T](), 1, s.doubles[k])
			all = append(all, number.tensor(key, nil))
		} else if layout.State[k] == engine.Scalar {
			all = append(all, scalarOf(key, s.numbers[k]))
		}
	}
	return all
}

func (e *elementwise[T, O, S]) load(saved *savedGroup) (func(), error) {
	c := &e.rule.class
	o, err := c.load(saved, *e.rule.o)
	if err == nil {
		err = c.checkOptions(o)
	}
	storage, stored, wrong := e.Storage.load(saved)
	if err = errors.Join(err, wrong); err != nil {
		return nil, err
	}
	types := typesOf[T](stored)
	layout, states := c.layout(o), make([]paramState, len(e.params))
	for i, p := range e.params {
		s, to := &saved.states[i], &states[i]
		if s.empty() {
			continue
		}
		to.made = true
		if c.integer {
			to.count = s.count("step")
		} else if layout.Counts || stored && s.has("step") {
			to.step = s.single("step", s.count("step"))
		}
		if stored {
			to.extras.load(s, len(p.Value), types[0])
		}
		for k, kept := range c.states {
			switch {
			// A state that depends on options is created at the first step that needs it.
			case !s.has(kept.key) && (kept.when != "" || layout.State[k] == engine.Unused):
			case kept.double:
				to.doubles[k], _ = s.number(kept.key)
			case kept.typed:
				x, _ := s.number(kept.key)
				if to.doubles[k] = dtype[T]().Round(x); to.doubles[k] != x && !math.IsNaN(x) {
					s.fail("%s is %v, expected a number of %s", kept.key, x, dtypeName[T]())
				}
			case layout.State[k] == engine.Scalar:
				x, _ := s.number(kept.key)
				to.numbers[k] = s.single(kept.key, x)
			default:
				n := c.elements(o, k, len(p.Value))
				if kept.of == steps.OfStart {
					s.spread(kept.key, n)
				}
				allowed := types
				if kept.narrow != "" && types[0].Narrow() {
					allowed = append([]engine.DType{engine.Float32}, types...)
				}
				to.columns[k] = s.stored(kept.key, n, allowed...)
			}
		}
		if err := s.end(); err != nil {
			return nil, err
		}
	}
	return func() { *e.rule.o, e.states, e.Storage = *o, states, storage }, nil
}

// MarshalBinary encodes the options and the state. See Stateful.
func (b *sparse[T, O, S]) MarshalBinary() ([]byte, error) { return marshal(b) }

// UnmarshalBinary restores the options and the state. See Stateful.
func (b *sparse[T, O, S]) UnmarshalBinary(data []byte) error { return unmarshal(b, data) }

func (b *sparse[T, O, S]) groups() []group   { return []group{b} }
func (b *sparse[T, O, S]) usable() error     { return checkSelf(b.self == b) }
func (b *sparse[T, O, S]) className() string { return b.spec.nameOf(b.o) }
func (b *sparse[T, O, S]) options() []option {
	return append(b.spec.options(b.o), b.Storage.options()...)
}
func (b *sparse[T, O, S]) ordered() bool { return false }

func (b *sparse[T, O, S]) handles() []handle {
	all := make([]handle, len(b.params))
	for i, p := range b.params {
		all[i] = handle{p, p.Name}
	}
	return all
}

func (b *sparse[T, O, S]) tensors(param int) (all []safetensors.Tensor) {
	s, shape := &b.states[param], b.params[param].shape()
	flag, _ := b.flags(dtype[T]())
	switch {
	case s.step == 0 || (b.spec.uncounted && flag != engine.Stochastic):
	case b.spec.integer:
		all = append(all, integerOf("step", int(s.step)))
	case float64(float32(s.step)) == s.step:
		all = append(all, scalarOf("step", float32(s.step)))
	default:
		all = append(all, scalarOf("step", s.step))
	}
	all = append(all, s.extras.tensors(shape)...)
	for k := range b.spec.states {
		if c := &s.columns[k]; c.made() && s.step != 0 {
			all = append(all, c.tensor(b.spec.states[k].key, shape))
		}
	}
	return all
}

func (b *sparse[T, O, S]) load(saved *savedGroup) (func(), error) {
	o, err := b.spec.load(saved, *b.o)
	if err == nil {
		err = b.spec.checkOptions(o)
	}
	storage, stored, wrong := b.Storage.load(saved)
	if err = errors.Join(err, wrong); err != nil {
		return nil, err
	}
	types := typesOf[T](stored)
	layout, states := b.spec.layout(o), make([]sparseState, len(b.params))
	for i, p := range b.params {
		s, to := &saved.states[i], &states[i]
		fresh := s.empty()
		if !fresh && (layout.Counts || stored && s.has("step")) {
			to.step = s.count("step")
		}
		if stored {
			to.extras.load(s, len(p.Value), types[0])
		}
		for k, kept := range b.spec.states {
			switch {
			case layout.State[k] != engine.Column:
			case fresh:
				to.columns[k] = makeStored(types[0], len(p.Value), b.spec.initial(o, k))
			default:
				to.columns[k] = s.stored(kept.key, len(p.Value), types...)
			}
		}
		if err := s.end(); err != nil {
			return nil, err
		}
	}
	return func() { *b.o, b.states, b.Storage = *o, states, storage }, nil
}
