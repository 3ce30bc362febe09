package goptim

import (
	"errors"
	"slices"
	"unsafe"

	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/goptim/internal/safetensors"
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
func (e *elementwise[T, O, S]) options() []option { return e.rule.options(e.rule.o) }
func (e *elementwise[T, O, S]) handles() []handle { return handlesOf(e.params) }
func (e *elementwise[T, O, S]) ordered() bool     { return false }

func (e *elementwise[T, O, S]) tensors(param int) (all []safetensors.Tensor) {
	s, shape := &e.states[param], e.params[param].shape()
	if !s.made {
		return nil
	}
	layout := e.rule.layout()
	if layout.Counts {
		all = append(all, scalarOf("step", s.step))
	}
	for k := range e.rule.states {
		if key := e.rule.states[k].key; s.columns[k] != nil {
			all = append(all, tensorOf(key, shape, s.columns[k]))
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
	if err != nil {
		return nil, err
	}
	layout, states := c.layout(o), make([]paramState[T], len(e.params))
	for i, p := range e.params {
		s, to := &saved.states[i], &states[i]
		if s.empty() {
			continue
		}
		to.made = true
		if layout.Counts {
			to.step = s.single("step", s.count("step"))
		}
		for k, kept := range c.states {
			switch {
			// A state that depends on options is created at the first step that needs it.
			case !s.has(kept.key) && (kept.when != "" || layout.State[k] == engine.Unused):
			case layout.State[k] == engine.Scalar:
				x, _ := s.number(kept.key)
				to.numbers[k] = s.single(kept.key, x)
			default:
				to.columns[k] = vector[T](s, kept.key, len(p.Value))
			}
		}
		if err := s.end(); err != nil {
			return nil, err
		}
	}
	return func() { *e.rule.o, e.states = *o, states }, nil
}

// MarshalBinary encodes the options and the state. See Stateful.
func (b *sparse[T, O, S]) MarshalBinary() ([]byte, error) { return marshal(b) }

// UnmarshalBinary restores the options and the state. See Stateful.
func (b *sparse[T, O, S]) UnmarshalBinary(data []byte) error { return unmarshal(b, data) }

func (b *sparse[T, O, S]) groups() []group   { return []group{b} }
func (b *sparse[T, O, S]) usable() error     { return checkSelf(b.self == b) }
func (b *sparse[T, O, S]) className() string { return b.spec.nameOf(b.o) }
func (b *sparse[T, O, S]) options() []option { return b.spec.options(b.o) }
func (b *sparse[T, O, S]) ordered() bool     { return false }

func (b *sparse[T, O, S]) handles() []handle {
	all := make([]handle, len(b.params))
	for i, p := range b.params {
		all[i] = handle{p, p.Name}
	}
	return all
}

func (b *sparse[T, O, S]) tensors(param int) (all []safetensors.Tensor) {
	s, p := &b.states[param], b.params[param]
	if s.step == 0 || b.spec.uncounted {
		return nil
	}
	switch {
	case b.spec.integer:
		all = append(all, integerOf("step", int(s.step)))
	case float64(float32(s.step)) == s.step:
		all = append(all, scalarOf("step", float32(s.step)))
	default:
		all = append(all, scalarOf("step", s.step))
	}
	for k := range b.spec.states {
		if s.columns[k] != nil {
			all = append(all, tensorOf(b.spec.states[k].key, p.shape(), s.columns[k]))
		}
	}
	return all
}

func (b *sparse[T, O, S]) load(saved *savedGroup) (func(), error) {
	o, err := b.spec.load(saved, *b.o)
	if err == nil {
		err = b.spec.checkOptions(o)
	}
	if err != nil {
		return nil, err
	}
	layout, states := b.spec.layout(o), make([]sparseState[T], len(b.params))
	for i, p := range b.params {
		s, to := &saved.states[i], &states[i]
		fresh := s.empty()
		if !fresh && layout.Counts {
			to.step = s.count("step")
		}
		for k, kept := range b.spec.states {
			switch {
			case layout.State[k] != engine.Column:
			case fresh:
				to.columns[k] = slices.Repeat([]T{T(b.spec.initial(o, k))}, len(p.Value))
			default:
				to.columns[k] = vector[T](s, kept.key, len(p.Value))
			}
		}
		if err := s.end(); err != nil {
			return nil, err
		}
	}
	return func() { *b.o, b.states = *o, states }, nil
}
