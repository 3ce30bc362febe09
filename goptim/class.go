package goptim

import (
	"cmp"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"unsafe"

	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/internal/steps"
)

// A class is what is known of an optimizer beside its arithmetic: torch's names, its options and its states. O is the
// struct of its options, whose fields are described by their tags: see field.
type class[O any] struct {
	name string // torch's class
	// variant is another class of torch, whose objects are those that have the flag set.
	variant, flag string
	uncounted     bool // the optimizer does not count its steps
	integer       bool // the step of a state is a Python int
	states        []state
	check         func(o *O) error // what ranges cannot say
	encodings     map[string]any   // of options in JSON that have an encoding of their own, by torch's name

	fields  []field
	words   int    // of a group in a steps.Call
	flagged *field // the option of flag
}

// A state is what an optimizer keeps of a parameter under a key of torch.
type state struct {
	key     string
	scalar  bool    // one number, instead of one for every element
	of      string  // another shape than the parameter's: see steps.State
	given   bool    // the caller of a binding hands it over with a row
	when    string  // the option that asks for the state, by not being zero; empty: it is always there
	above   bool    // the option asks by being above zero
	word    string  // for bindings: a word after the options that asks for the state, by not being zero
	initial float64 // its value at first
	from    string  // the option that is its value at first

	asks, first *field // the options of when and from
}

// described reads the tags of the options.
func (c class[O]) described() class[O] {
	c.fields = fieldsOf(reflect.TypeFor[O](), c.encodings)
	for i := range c.states {
		s := &c.states[i]
		s.asks, s.first = c.field(s.when), c.field(s.from)
	}
	c.flagged = c.field(c.flag)
	for _, f := range c.fields {
		if !f.initial {
			c.words += f.elements()
		}
	}
	return c
}

// field is the option under a key of torch; nil for no key.
func (c *class[O]) field(key string) *field {
	if key == "" {
		return nil
	}
	at := slices.IndexFunc(c.fields, func(f field) bool { return f.key == key })
	if at < 0 {
		panic(fmt.Sprintf("%s has no option %s", c.name, key))
	}
	return &c.fields[at]
}

// nameOf is torch's class for the options.
func (c *class[O]) nameOf(o *O) string {
	if c.flagged != nil && c.flagged.get(unsafe.Pointer(o), 0) != 0 {
		return c.variant
	}
	return c.name
}

// setDefaults replaces zeros by defaults.
func (c *class[O]) setDefaults(o *O) {
	for i := range c.fields {
		c.fields[i].setDefault(unsafe.Pointer(o))
	}
}

// checkOptions reports options out of their range.
func (c *class[O]) checkOptions(o *O) (err error) {
	name := c.nameOf(o)
	for i := range c.fields {
		if wrong := c.fields[i].check(name, unsafe.Pointer(o)); wrong != nil {
			err = errors.Join(err, wrong)
		}
	}
	if c.check != nil {
		err = errors.Join(err, c.check(o))
	}
	return err
}

// options are the options as files have them.
func (c *class[O]) options(o *O) []option {
	all := make([]option, len(c.fields))
	for i := range c.fields {
		all[i] = c.fields[i].option(unsafe.Pointer(o))
	}
	return all
}

// decode makes options of the scalars of a group in a steps.Call.
func (c *class[O]) decode(o *O, words []float64) {
	at := 0
	for i := range c.fields {
		f := &c.fields[i]
		for k := 0; k < f.elements() && !f.initial; k++ {
			f.set(unsafe.Pointer(o), k, words[at])
			at++
		}
	}
}

// layout is what the options ask for in a row.
func (c *class[O]) layout(o *O) engine.Layout {
	l := engine.Layout{Counts: !c.uncounted}
	for i := range c.states {
		s := &c.states[i]
		switch {
		case s.asks != nil && !s.asked(s.asks.get(unsafe.Pointer(o), 0)):
		case s.scalar:
			l.Set(i, engine.Scalar)
		default:
			l.Set(i, engine.Column)
		}
	}
	return l
}

func (s *state) asked(x float64) bool { return x > 0 || (!s.above && x != 0) }

// initial is the value of a new state.
func (c *class[O]) initial(o *O, i int) float64 {
	if s := &c.states[i]; s.first != nil {
		return s.first.get(unsafe.Pointer(o), 0)
	}
	return c.states[i].initial
}

// kind describes the class for the binding.
func (c *class[O]) kind() *steps.Kind {
	k := &steps.Kind{
		Name: c.name, Classes: map[string]map[string]float64{c.name: {}}, Flags: []string{}, Extra: []string{},
		Counts: !c.uncounted, Integer: c.integer, States: []steps.State{},
		Defaults: map[string]string{}, Ranges: map[string]string{},
	}
	if c.variant != "" {
		k.Classes = map[string]map[string]float64{c.name: {c.flag: 0}, c.variant: {c.flag: 1}}
	}
	for i := range c.fields {
		f := &c.fields[i]
		for j := 0; j < f.elements() && !f.initial; j++ {
			k.Options = append(k.Options, f.element(f.key, j))
		}
		if f.kind == reflect.Bool {
			k.Flags = append(k.Flags, f.key)
		}
		if f.defaultTag != "" {
			k.Defaults[f.key] = f.defaultTag
		}
		if f.rangeTag != "" {
			k.Ranges[f.key] = f.rangeTag
		}
		if f.absent {
			k.Classes[c.name][f.key] = 0
		}
	}
	for _, s := range c.states {
		k.States = append(k.States, steps.State{Key: s.key, Scalar: s.scalar, Of: s.of, When: cmp.Or(s.when, s.word), Above: s.above, Given: s.given})
	}
	return k
}
