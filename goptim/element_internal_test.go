package goptim

import (
	"math"
	"slices"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/assert"
	testify "github.com/stretchr/testify/require"

	"github.com/goptim/goptim/goptim/internal/cpow"
	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/goptim/internal/kernel"
)

// EachState calls do with every state tensor.
func (e *elementwise[T, O, S]) EachState(do func([]T)) {
	for i := range e.states {
		for k := range e.states[i].columns {
			do(view[T](&e.states[i].columns[k]))
		}
	}
}

// column is memory of n elements of a type, which can be read and set as float32.
type column struct {
	d      engine.DType
	halves []uint16
	whole  []float32
}

func columnOf(d engine.DType, numbers []float32) column {
	c := column{d, make([]uint16, len(numbers)), make([]float32, len(numbers))}
	c.set(numbers)
	return c
}

func (c column) set(numbers []float32) {
	for i, x := range numbers {
		switch c.d {
		case engine.BFloat16:
			c.halves[i] = uint16(BFloat16FromFloat32(x))
		case engine.Float16:
			c.halves[i] = uint16(Float16FromFloat32(x))
		default:
			c.whole[i] = x
		}
	}
}

func (c column) get() []float32 {
	numbers := slices.Clone(c.whole)
	for i, x := range c.halves {
		switch c.d {
		case engine.BFloat16:
			numbers[i] = BFloat16(x).Float32()
		case engine.Float16:
			numbers[i] = Float16(x).Float32()
		}
	}
	return numbers
}

func (c column) address() uintptr {
	if c.d == engine.Float32 {
		return engine.Address(unsafe.Pointer(unsafe.SliceData(c.whole)))
	}
	return engine.Address(unsafe.Pointer(unsafe.SliceData(c.halves)))
}

// TestMixedRows steps rows whose tensors differ in type, and compares them with float32 rows that are rounded after each step.
func TestMixedRows(t *testing.T) {
	const b16, f16, f32 = engine.BFloat16, engine.Float16, engine.Float32
	options := AdamOptions{WeightDecay: .1, DecoupledWeightDecay: true}
	adam.setDefaults(&options)
	const n = 1100
	number := func(k, i int) float32 { return float32(math.Sin(float64(1+7*i+131*k))) * float32(k+1) }
	for _, c := range []struct {
		name     string
		elements engine.DType
		states   [2]engine.DType
		master   bool
	}{
		{"states of float32", b16, [2]engine.DType{f32, f32}, false},
		{"states of bfloat16", f32, [2]engine.DType{b16, b16}, false},
		{"states of two types", f16, [2]engine.DType{b16, f32}, false},
		{"master", b16, [2]engine.DType{f32, f32}, true},
		{"master and states of 16 bits", f16, [2]engine.DType{b16, b16}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			types := []engine.DType{c.elements, c.elements, c.states[0], c.states[1], f32}
			ours, oracle := make([]column, len(types)), make([]column, len(types))
			for k, d := range types {
				numbers := make([]float32, n)
				for i := range numbers {
					if numbers[i] = number(k, i); k > 1 {
						numbers[i] *= numbers[i]
					}
				}
				if k == 4 && c.master { // a master copy is near the parameter
					for i, x := range ours[0].get() {
						numbers[i] = x * (1 + 1.0/4096)
					}
				}
				ours[k] = columnOf(d, numbers)
				oracle[k] = columnOf(f32, ours[k].get())
			}
			stepOf := func(c []column, master bool) {
				count := float32(3)
				row := engine.Row{N: n, Types: engine.TypesOf(c[0].d, f32), Param: c[0].address(), Grad: c[1].address(), Step: engine.Address(unsafe.Pointer(&count))}
				for k, s := range c[2:4] {
					row.State[k], row.StateType[k] = s.address(), s.d
				}
				if master {
					row.Flags |= engine.Master
					row.State[engine.MasterState], row.StateType[engine.MasterState] = c[4].address(), f32
				}
				rule := bound[AdamOptions, kernel.Adam]{adam, &options}
				layout := rule.layout()
				testify.NoError(t, row.Check(&layout))
				var p pass[kernel.Adam]
				p.begin(rule.kernels(), []engine.Row{row})
				testify.NoError(t, p.add(&rule, 1, stepContext{pow: cpow.Pow}))
				testify.NoError(t, engine.Run(&p, p.rows, 1, nil))
			}
			for range 3 {
				stepOf(ours, c.master)
				if c.master {
					oracle[0], oracle[4] = oracle[4], oracle[0]
				}
				stepOf(oracle, false)
				if c.master {
					oracle[0], oracle[4] = oracle[4], oracle[0]
					oracle[0].set(oracle[4].get())
				}
				for k := range ours {
					oracle[k].set(columnOf(types[k], oracle[k].get()).get())
					assert.Equal(t, oracle[k].get(), ours[k].get(), "column %d", k)
				}
			}
		})
	}
}
