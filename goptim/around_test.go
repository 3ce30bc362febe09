package goptim

import (
	"fmt"
	"math"
	"reflect"
	"runtime"
	"slices"
	"testing"
	"unsafe"

	testify "github.com/stretchr/testify/require"

	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/internal/steps"
)

// TestAround compares a step of every elementwise optimizer with what surrounds it with separate calls, and checks that it does
// not allocate.
func TestAround(t *testing.T) {
	for _, k := range steps.Kinds() {
		if s, ok := k.Spec.(interface {
			testAround(t *testing.T, k *steps.Kind)
		}); ok && k.Around {
			t.Run(k.Name, func(t *testing.T) { s.testAround(t, k) })
		}
	}
}

func (s *spec[O, S]) testAround(t *testing.T, k *steps.Kind) {
	options := s.unusual()
	for _, limit := range []float64{.25, math.Inf(1)} {
		testAround[float32](t, s, k, options, limit)
		testAround[float64](t, s, k, options, limit)
	}
	if maximize := reflect.ValueOf(&options).Elem().FieldByName("Maximize"); maximize.IsValid() {
		maximize.SetBool(true) // the factor of the gradients is not one of the kernel's scalars
		testAround[float32](t, s, k, options, .25)
	}
}

func testAround[T Float, O, S any](t *testing.T, s *spec[O, S], k *steps.Kind, options O, limit float64) {
	workers := 1
	s.train(&options)
	params := func() (all []*Param[T]) {
		for n := range 5 {
			p := &Param[T]{}
			for i := range 700*n + 1 {
				p.Value, p.Grad = append(p.Value, T(i)/7), append(p.Grad, T(i%7)-3)
			}
			all = append(all, p)
		}
		return all
	}
	var apart, around elementwise[T, O, S]
	expected, given := params(), params()
	testify.NoError(t, apart.begin(s, &options, &workers, expected))
	testify.NoError(t, around.begin(s, &options, &workers, given))
	averages, expectedAverages := params(), params()
	group, a := s.group(&options, k), &steps.Around{
		Flags: steps.Clip | steps.Average | steps.Clear, MaxNorm: limit, Weight: .25,
	}
	onHeap = []any{group, a}
	group.Around = uintptr(unsafe.Pointer(a))
	var table []engine.Row
	step := func() error {
		_, err := k.Call(uintptr(unsafe.Pointer(group)), steps.Call{Threads: 1})
		return err
	}
	for range 3 {
		for i := range expected {
			for n := range expected[i].Grad {
				expected[i].Grad[n], given[i].Grad[n] = T(n%7)-3, T(n%7)-3
			}
		}
		norm, err := ClipGradNorm(expected, ClipGradNormOptions{MaxNorm: limit})
		testify.NoError(t, err)
		group.Scalars = s.group(&options, k).Scalars
		testify.NoError(t, apart.Step())
		testify.NoError(t, EMA(expectedAverages, expected, EMAOptions{Decay: .75}))
		if around.gather() {
			around.makeStates()
		}
		table = slices.Clone(around.rows)
		for i := range table {
			table[i].State[engine.AverageState] = address(averages[i].Value)
			table[i].StateType[engine.AverageState] = dtype[T]()
		}
		group.Table, group.Rows = uintptr(unsafe.Pointer(&table[0])), int64(len(table))
		testify.NoError(t, step())
		testify.EqualValues(t, 1, a.Done)
		testify.Equal(t, float64(norm), a.Norm)
		for i := range expected {
			testify.True(t, slices.Equal(expected[i].Value, given[i].Value), i)
			testify.True(t, slices.Equal(expectedAverages[i].Value, averages[i].Value), i)
			testify.NotContains(t, fmt.Sprint(given[i].Grad), "1")
		}
		testify.Equal(t, apart.states, around.states)
	}
	testNoAllocations(t, step)

	value := slices.Clone(given[2].Value)
	table[2].State[engine.AverageState] = table[3].Param // the order of the rows matters
	testify.NoError(t, step())
	testify.EqualValues(t, 0, a.Done)
	table[2].State[engine.AverageState] = 17
	testify.ErrorContains(t, step(), "address 0x11")
	table[2].State[engine.AverageState] = address(averages[2].Value)
	a.Order = 99
	testify.ErrorContains(t, step(), "order is 99")
	if a.Order = 0; dtype[T]() == engine.Float32 {
		before := table[1]
		table[1].ParamType, table[1].GradType = engine.BFloat16, engine.BFloat16
		testify.ErrorContains(t, step(), "row 1 is of bfloat16, expected float32")
		table[1] = before
	}
	group.Around = 4099
	testify.ErrorIs(t, step(), steps.ErrCall)
	testify.Equal(t, value, given[2].Value)
	runtime.KeepAlive(&around)
}
