package goptim

import (
	"cmp"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"unsafe"

	"github.com/goptim/goptim/goptim/internal/cpow"
	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/internal/steps"
)

// A class describes an optimizer, except for its arithmetic: torch's names, its options and its states. O is the struct of
// its options, whose fields are described by their tags. See field.
type class[O any] struct {
	name string // torch's class
	// variant is torch's class for options with the flag set.
	variant, flag string
	uncounted     bool     // the optimizer does not have a step count
	together      bool     // the update of a parameter depends on the gradients of all
	unstored      bool     // Storage is not supported
	integer       bool     // the step count of a state is a Python int
	tensors       int      // for operations on lists: see steps.Kind
	results       []string // for them, and for optimizers, the keys of the options that a step changes, which advance sets
	states        []state
	complete      func(o *O)       // defaults that depend on other options; may be nil
	check         func(o *O) error // checks that ranges cannot express
	encodings     map[string]any   // types of options with a custom JSON encoding, by torch's name
	// For options that a step changes, such as a group's step count; both may be nil.
	ready   func(o *O) error           // returns an error if the optimizer cannot step now; steps of the bindings do not call it
	advance func(o *O, c *stepContext) // changes the options as a step does

	fields  []field
	words   int      // the number of words of a group in a steps.Call
	flagged *field   // the field of flag
	changed []*field // the fields of results
}

// A state is one entry of a parameter's state, under torch's key.
type state struct {
	key     string
	scalar  bool    // a scalar state, not a tensor
	double  bool    // a scalar state that is a float64, and a Python float
	typed   bool    // a scalar state of the type of the elements
	of      string  // its shape, if it differs from the parameter's: see steps.State
	given   bool    // the caller of a binding passes it with a row
	when    string  // the option that enables the state if it is not zero, or its first element; empty: always enabled
	above   bool    // the option enables the state only if it is positive
	narrow  string  // the type of its elements if the parameter has 16 bits: see steps.State
	word    string  // for bindings: a word after the options that enables the state if it is not zero
	initial float64 // its initial value
	from    string  // the option that is its initial value
	squared bool    // its initial value is the square of that option
	copied  bool    // its initial value is the parameter's

	asks, first *field // the fields of when and from
}

// reserved is a state that no class has: that of engine.MasterState, in a class with states after it.
var reserved = state{given: true}

// keepsMaster reports whether rows can have another storage: no state of the class is in the place of engine.MasterState.
func (c *class[O]) keepsMaster() bool {
	return !c.unstored && (len(c.states) <= engine.MasterState || c.states[engine.MasterState] == reserved)
}

// described returns the class with the tags of its options read.
func (c class[O]) described() class[O] {
	c.fields = fieldsOf(reflect.TypeFor[O](), c.encodings)
	for i := range c.states {
		s := &c.states[i]
		s.asks, s.first = c.field(s.when), c.field(s.from)
	}
	c.flagged = c.field(c.flag)
	for _, key := range c.results {
		if c.tensors == 0 {
			c.changed = append(c.changed, c.field(key))
		}
	}
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

// setDefaults replaces zero options by their defaults, except those that depend on other options.
func (c *class[O]) setDefaults(o *O) {
	for i := range c.fields {
		c.fields[i].setDefault(unsafe.Pointer(o))
	}
}

// setAllDefaults is setDefaults, and then sets defaults that depend on other options. The options escape to the heap.
func (c *class[O]) setAllDefaults(o *O) {
	c.setDefaults(o)
	if c.complete != nil {
		c.complete(o)
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
		case s.scalar || s.double:
			l.Set(i, engine.Scalar)
		case s.sliced():
			l.Every = int(s.asks.get(unsafe.Pointer(o), 0))
			l.Set(i, map[string]engine.Use{steps.OfSlices: engine.Sliced, steps.OfStart: engine.Start}[s.of])
		default:
			l.Set(i, engine.Column)
		}
	}
	return l
}

// sliced reports whether the state has elements for some of the parameter's.
func (s *state) sliced() bool { return s.of == steps.OfSlices || s.of == steps.OfStart }

func (s *state) asked(x float64) bool { return x > 0 || (!s.above && x != 0) }

// every returns the distance of the elements of a parameter for which a state has elements.
func (c *class[O]) every(o *O, i int) int {
	if i >= len(c.states) || !c.states[i].sliced() {
		return 1
	}
	return max(1, int(c.states[i].asks.get(unsafe.Pointer(o), 0)))
}

// elements returns the number of elements of a state of a parameter with n elements.
func (c *class[O]) elements(o *O, i, n int) int {
	every := c.every(o, i)
	return (n + every - 1) / every
}

// initial returns the initial value of a state.
func (c *class[O]) initial(o *O, i int) float64 {
	if s := &c.states[i]; s.first != nil {
		x := s.first.get(unsafe.Pointer(o), 0)
		if s.squared {
			return cpow.Pow(x, 2) // as Python
		}
		return x
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
		if s.asks != nil {
			s.when = s.asks.element(s.when, 0)
		}
		k.States = append(k.States, steps.State{
			Key: s.key, Scalar: s.scalar || s.double, Of: cmp.Or(s.of, map[bool]string{true: steps.OfFloat}[s.double]), When: cmp.Or(s.when, s.word), Above: s.above, From: s.from, Narrow: s.narrow, Given: s.given,
		})
	}
	return k
}
