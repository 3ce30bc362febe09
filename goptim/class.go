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

// A class describes an optimizer, except for its arithmetic: torch's names, its options and its states. O is the struct of
// its options, whose fields are described by their tags. See field.
type class[O any] struct {
	name string // torch's class
	// variant is torch's class for options with the flag set.
	variant, flag string
	uncounted     bool // the optimizer does not have a step count
	integer       bool // the step count of a state is a Python int
	tensors       int  // for operations on lists: see steps.Kind
	results       []string
	states        []state
	check         func(o *O) error // checks that ranges cannot express
	encodings     map[string]any   // types of options with a custom JSON encoding, by torch's name

	fields  []field
	words   int    // the number of words of a group in a steps.Call
	flagged *field // the field of flag
}

// A state is one entry of a parameter's state, under torch's key.
type state struct {
	key     string
	scalar  bool    // a scalar state, not a tensor
	of      string  // its shape, if it differs from the parameter's: see steps.State
	given   bool    // the caller of a binding passes it with a row
	when    string  // the option that enables the state if it is not zero; empty: always enabled
	above   bool    // the option enables the state only if it is positive
	word    string  // for bindings: a word after the options that enables the state if it is not zero
	initial float64 // its initial value
	from    string  // the option that is its initial value

	asks, first *field // the fields of when and from
}

// described returns the class with the tags of its options read.
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

// field returns the option with torch's key, or nil if the key is empty.
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

// nameOf returns torch's class for the options.
func (c *class[O]) nameOf(o *O) string {
	if c.flagged != nil && c.flagged.get(unsafe.Pointer(o), 0) != 0 {
		return c.variant
	}
	return c.name
}

// setDefaults replaces zero options by their defaults.
func (c *class[O]) setDefaults(o *O) {
	for i := range c.fields {
		c.fields[i].setDefault(unsafe.Pointer(o))
	}
}

// checkOptions returns an error for each option that is out of range.
func (c *class[O]) checkOptions(o *O) error {
	err := c.checkRanges(o)
	if c.check != nil {
		err = errors.Join(err, c.check(o))
	}
	return err
}

// checkRanges is checkOptions without the checks that ranges cannot express. The options do not escape to the heap.
func (c *class[O]) checkRanges(o *O) (err error) {
	name := c.nameOf(o)
	for i := range c.fields {
		if wrong := c.fields[i].check(name, unsafe.Pointer(o)); wrong != nil {
			err = errors.Join(err, wrong)
		}
	}
	return err
}

// options returns the options for saved states.
func (c *class[O]) options(o *O) []option {
	all := make([]option, len(c.fields))
	for i := range c.fields {
		all[i] = c.fields[i].option(unsafe.Pointer(o))
	}
	return all
}

// decode sets the options from the scalars of a group in a steps.Call.
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

// layout returns the layout of a row that the options require.
func (c *class[O]) layout(o *O) engine.Layout {
	l := engine.Layout{Counts: c.tensors == 0 && !c.uncounted, Single: c.tensors == 1}
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

// initial returns the initial value of a state.
func (c *class[O]) initial(o *O, i int) float64 {
	if s := &c.states[i]; s.first != nil {
		return s.first.get(unsafe.Pointer(o), 0)
	}
	return c.states[i].initial
}

// kind returns the description of the class for the bindings.
func (c *class[O]) kind() *steps.Kind {
	k := &steps.Kind{
		Name: c.name, Classes: map[string]map[string]float64{c.name: {}}, Flags: []string{}, Extra: []string{},
		Tensors: c.tensors, Results: []string{},
		Counts: c.tensors == 0 && !c.uncounted, Integer: c.integer, States: []steps.State{},
		Defaults: map[string]string{}, Ranges: map[string]string{},
	}
	if c.tensors != 0 {
		k.Classes, k.Options = map[string]map[string]float64{}, []string{}
	}
	k.Results = append(k.Results, c.results...)
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
