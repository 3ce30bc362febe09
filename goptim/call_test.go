package goptim

import (
	"reflect"
	"runtime"
	"slices"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/assert"
	testify "github.com/stretchr/testify/require"

	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/internal/steps"
)

// TestCalls steps groups of a steps.Call with every registered elementwise and sparse optimizer, compares the results
// with Step, and checks that a call does not allocate.
func TestCalls(t *testing.T) {
	for _, k := range steps.Kinds() {
		if s, ok := k.Spec.(interface {
			testCall(t *testing.T, k *steps.Kind)
		}); ok && k.Tensors == 0 {
			t.Run(k.Name, func(t *testing.T) { s.testCall(t, k) })
		}
	}
}

// onHeap refers to the objects whose addresses are in a call. On the stack they could move.
var onHeap []any

// unusual returns options in which every number differs from its default if its range permits it.
func (c *class[O]) unusual() (o O) {
	c.setAllDefaults(&o)
	for i := range c.fields {
		f := &c.fields[i]
		for k := range f.elements() {
			x := .75 * f.get(unsafe.Pointer(&o), k)
			if x == 0 {
				x = .125
			}
			if f.kind == reflect.Float64 && (f.ranges == nil || f.ranges[k].contains(x)) {
				f.set(unsafe.Pointer(&o), k, x)
			}
		}
	}
	return o
}

// UnusualOptions returns options of a type in which every number differs from its default if its range permits it.
func UnusualOptions[O any]() O {
	c := class[O]{}.described()
	return c.unusual()
}

// group returns a group of a call with the options.
func (c *class[O]) group(o *O, k *steps.Kind) *steps.Group {
	g := &steps.Group{Count: int64(k.Words())}
	at := 0
	for i := range c.fields {
		f := &c.fields[i]
		for k := 0; k < f.elements() && !f.initial; k++ {
			g.Scalars[at] = f.get(unsafe.Pointer(o), k)
			at++
		}
	}
	return g
}

// train sets the option that a step requires, if there is one.
func (c *class[O]) train(o *O) {
	for i := range c.fields {
		if f := &c.fields[i]; f.key == "train_mode" {
			f.set(unsafe.Pointer(o), 0, 1)
		}
	}
}

func (s *spec[O, S]) testCall(t *testing.T, k *steps.Kind) {
	usual, unusual := *new(O), s.unusual()
	s.setAllDefaults(&usual)
	options := []O{usual, unusual}
	workers := 1
	var optimizers, others [2]elementwise[float32, O, S]
	groups, tables := make([]*steps.Group, 2), make([][]engine.Row, 2)
	for i := range options {
		params := func() (all []*Param[float32]) {
			for n := range 5 {
				p := &Param[float32]{}
				for k := range 30 * n {
					p.Value, p.Grad = append(p.Value, float32(k-7*i)), append(p.Grad, float32(k%7)-3)
				}
				all = append(all, p)
			}
			return all
		}
		s.train(&options[i])
		testify.NoError(t, optimizers[i].begin(s, &options[i], &workers, params()))
		testify.NoError(t, others[i].begin(s, &options[i], &workers, params()))
		groups[i] = s.group(&options[i], k)
	}
	onHeap = []any{groups[0], groups[1]}
	calls := groups
	if !s.together {
		groups[0].Next, calls = uintptr(unsafe.Pointer(groups[1])), groups[:1]
	}
	step := func() (err error) {
		for _, g := range calls {
			if _, err = k.Call(uintptr(unsafe.Pointer(g)), steps.Call{Threads: 1}); err != nil {
				break
			}
		}
		return err
	}
	for range 3 {
		for i := range optimizers {
			groups[i].Scalars = s.group(&options[i], k).Scalars
			testify.NoError(t, optimizers[i].Step())
			if others[i].gather() {
				others[i].makeStates()
			}
			tables[i] = slices.Clone(others[i].rows)
			groups[i].Table, groups[i].Rows = uintptr(unsafe.Pointer(&tables[i][0])), int64(len(tables[i]))
		}
		testify.NoError(t, step())
		for i := range optimizers {
			for n, p := range optimizers[i].params {
				testify.Equal(t, p.Value, others[i].params[n].Value)
			}
			testify.Equal(t, optimizers[i].states, others[i].states)
		}
	}
	testNoAllocations(t, step)
	runtime.KeepAlive(&others)
}

func (s *sparseSpec[O, S]) testCall(t *testing.T, k *steps.Kind) {
	options, workers := s.unusual(), 1
	for _, f := range s.zero {
		f.set(unsafe.Pointer(&options), 0, 0)
	}
	param := func() *SparseParam[float64] {
		p := &SparseParam[float64]{Value: make([]float64, 40), Width: 4, Indices: []int64{7, 3, 7, 9}}
		for i := range 16 {
			p.Grad = append(p.Grad, float64(i%5)-2)
		}
		return p
	}
	var optimizer, other sparse[float64, O, S]
	testify.NoError(t, optimizer.begin(s, &options, &workers, []*SparseParam[float64]{param()}))
	testify.NoError(t, other.begin(s, &options, &workers, []*SparseParam[float64]{param()}))
	group, row := s.group(&options, k), new(sparseRow)
	*row = other.rowOf(0)
	onHeap = []any{group, row}
	group.Table, group.Rows = uintptr(unsafe.Pointer(row)), 1
	step := func() error {
		row.step++
		_, err := k.Call(uintptr(unsafe.Pointer(group)), steps.Call{Threads: 1})
		return err
	}
	for range 3 {
		testify.NoError(t, optimizer.Step())
		testify.NoError(t, step())
		testify.Equal(t, optimizer.params[0].Value, other.params[0].Value)
		testify.Equal(t, optimizer.states[0].columns, other.states[0].columns)
	}
	testNoAllocations(t, step)
	runtime.KeepAlive(&other)
}

func testNoAllocations(t *testing.T, step func() error) {
	allocations := testing.AllocsPerRun(20, func() {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	})
	if !Detector { // with the race detector, a sync.Pool drops some of the objects that are put into it
		assert.Zero(t, allocations)
	}
}
