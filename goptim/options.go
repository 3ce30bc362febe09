package goptim

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unsafe"
)

// A field is an option of an optimizer, described by the tags of its field in the struct of options:
//
//	torch:"lr"            torch's name; after a comma, null allows null in a file, initial marks an option that is used only
//	                      to create states, or that steps of the bindings do not read, and absent marks a flag that does not
//	                      exist in some versions of torch. A field named - is not an option of torch
//	default:"0.9 0.999"   the value with which New replaces zero, for each element
//	range:"[0,1)"         the allowed values, for each element or one range for all; - allows any value
//
// The fields of an embedded struct are options too. The tags are read once, when the package is initialized. A step accesses an
// option at its offset.
type field struct {
	key, name     string // in torch and in Go
	offset        uintptr
	kind          reflect.Kind // of an element: Float64, Bool, Int or Int64
	size          uintptr      // of an element
	length        int          // of an array; 0 if the option is not an array
	defaults      []float64
	ranges        []interval
	defaultTag    string
	rangeTag      string
	null, initial bool
	absent        bool
	encoding      reflect.Type // of the value in JSON
}

func fieldsOf(options reflect.Type, encodings map[string]any) (all []field) {
	for i := range options.NumField() {
		member := options.Field(i)
		if !member.IsExported() {
			continue
		}
		if member.Anonymous {
			for _, f := range fieldsOf(member.Type, encodings) {
				f.offset += member.Offset
				all = append(all, f)
			}
			continue
		}
		key, flags, _ := strings.Cut(member.Tag.Get("torch"), ",")
		if key == "-" {
			continue
		}
		f := field{
			key: key, name: member.Name, offset: member.Offset, kind: member.Type.Kind(), size: member.Type.Size(),
			null: flags == "null", initial: flags == "initial", absent: flags == "absent", encoding: member.Type,
		}
		f.defaultTag, f.rangeTag = member.Tag.Get("default"), member.Tag.Get("range")
		if f.kind == reflect.Array {
			f.length = member.Type.Len()
			f.kind, f.size = member.Type.Elem().Kind(), member.Type.Elem().Size()
		} else if f.kind == reflect.Float64 {
			f.encoding = reflect.TypeFor[number]()
		}
		if as, ok := encodings[key]; ok {
			f.encoding = reflect.TypeOf(as)
		}
		for _, text := range strings.Fields(f.defaultTag) {
			x, err := strconv.ParseFloat(text, 64)
			must(err == nil, options, f.name, "default")
			f.defaults = append(f.defaults, x)
		}
		for _, text := range strings.Fields(f.rangeTag) {
			r, ok := parseInterval(text)
			if text == "-" { // any value
				r, ok = interval{low: math.NaN()}, true
			}
			must(ok, options, f.name, "range")
			f.ranges = append(f.ranges, r)
		}
		if len(f.ranges) == 1 {
			f.ranges = slices.Repeat(f.ranges, f.elements())
		}
		must(key != "", options, f.name, "torch")
		must(f.defaults == nil || len(f.defaults) == f.elements(), options, f.name, "default")
		must(f.ranges == nil || len(f.ranges) == f.elements(), options, f.name, "range")
		all = append(all, f)
	}
	return all
}

func must(ok bool, options reflect.Type, name, tag string) {
	if !ok {
		panic(fmt.Sprintf("%v: the tag %q of %s is wrong", options, tag, name))
	}
}

func (f *field) elements() int { return max(f.length, 1) }

// get returns an element of the option.
func (f *field) get(options unsafe.Pointer, i int) float64 {
	switch at := unsafe.Add(options, f.offset+uintptr(i)*f.size); f.kind {
	case reflect.Float64:
		return *(*float64)(at)
	case reflect.Bool:
		if *(*bool)(at) {
			return 1
		}
		return 0
	case reflect.Int64:
		return float64(*(*int64)(at))
	default:
		return float64(*(*int)(at))
	}
}

// set sets an element of the option.
func (f *field) set(options unsafe.Pointer, i int, x float64) {
	switch at := unsafe.Add(options, f.offset+uintptr(i)*f.size); f.kind {
	case reflect.Float64:
		*(*float64)(at) = x
	case reflect.Bool:
		*(*bool)(at) = x != 0
	case reflect.Int64:
		*(*int64)(at) = int64(x)
	default:
		*(*int)(at) = int(x)
	}
}

// setDefault replaces zero by the default.
func (f *field) setDefault(options unsafe.Pointer) {
	for i := range f.defaults {
		if f.get(options, i) != 0 {
			return
		}
	}
	for i, x := range f.defaults {
		f.set(options, i, x)
	}
}

func (f *field) check(optimizer string, options unsafe.Pointer) (err error) {
	for i, r := range f.ranges {
		if x := f.get(options, i); !r.contains(x) {
			err = errors.Join(err, require(false, optimizer, f.element(f.name, i), x, r.String()))
		}
	}
	return err
}

// element returns the name of an element of the option.
func (f *field) element(name string, i int) string {
	if f.length == 0 {
		return name
	}
	return fmt.Sprintf("%s[%d]", name, i)
}

// option returns the option for saved states.
func (f *field) option(options unsafe.Pointer) option {
	at := unsafe.Add(options, f.offset)
	if f.encoding.Kind() == reflect.Array && f.kind == reflect.Float64 && f.encoding.Name() == "" {
		return option{f.key, tupleOf(unsafe.Slice((*float64)(at), f.length)), f.null}
	}
	return option{f.key, reflect.NewAt(f.encoding, at).Interface(), f.null}
}

// An interval is a range of numbers. An infinite end means that there is no bound.
type interval struct {
	low, high           float64
	aboveLow, belowHigh bool // exclude the ends
}

// parseInterval parses the form [0,1), in which inf and -inf are allowed.
func parseInterval(text string) (r interval, ok bool) {
	low, high, ok := strings.Cut(text, ",")
	if !ok || len(low) < 2 || len(high) < 2 {
		return r, false
	}
	var err, errHigh error
	r.low, err = strconv.ParseFloat(low[1:], 64)
	r.high, errHigh = strconv.ParseFloat(high[:len(high)-1], 64)
	r.aboveLow, r.belowHigh = low[0] == '(', high[len(high)-1] == ')'
	return r, errors.Join(err, errHigh) == nil
}

// contains returns false for NaN, unless the interval allows any value.
func (r interval) contains(x float64) bool {
	if math.IsNaN(r.low) {
		return true
	}
	return (x > r.low || (x == r.low && !r.aboveLow)) && (x < r.high || (x == r.high && !r.belowHigh))
}

func (r interval) String() string {
	var ends []string
	end := func(x float64, open bool, without, with string) {
		if math.IsInf(x, 0) {
			return
		}
		if open {
			with = without
		}
		ends = append(ends, fmt.Sprintf("%s %v", with, x))
	}
	end(r.low, r.aboveLow, "above", "at least")
	end(r.high, r.belowHigh, "below", "at most")
	if ends == nil {
		return "a number"
	}
	return strings.Join(ends, " and ")
}

// require returns nil if ok, and otherwise an ErrOption with the option and what was expected. Callers write the comparison
// so that it is false for NaN.
func require(ok bool, optimizer, option string, got float64, expected string) error {
	if ok {
		return nil
	}
	return fmt.Errorf("goptim: %s: %s is %v, expected %s: %w", optimizer, option, got, expected, ErrOption)
}
