package lbfgs

import (
	"math"
	"runtime"
	"slices"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A caller owns a machine's memory, and answers what it asks for.
type caller struct {
	machine     Machine
	x, grad     []float64
	segments    []Segment
	vectors     [][]float64
	pairs       [][2]uintptr
	ros, alphas []float64
	f           func(x, grad []float64) float64
}

func (c *caller) vector() uintptr {
	v := make([]float64, len(c.x))
	c.vectors = append(c.vectors, v)
	return address(v)
}

func address[T any](s []T) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(s))) }

// newCaller evaluates f at x, whose elements are in two segments, and prepares a machine for a step.
func newCaller(x []float64, search bool, f func(x, grad []float64) float64) *caller {
	c := &caller{x: x, grad: make([]float64, len(x)), f: f}
	c.segments = []Segment{{1, address(c.x), address(c.grad)}, {len(x) - 1, address(c.x[1:]), address(c.grad[1:])}}
	c.machine = Machine{
		LR: Number{1, Float}, MaxIter: 20, MaxEval: 25, ToleranceGrad: 1e-7, ToleranceChange: 1e-9,
		Segments: address(c.segments), SegmentCount: 2, N: len(x), Float64: 1,
		Kept: c.vector(), Direction: c.vector(), Y: c.vector(), S: c.vector(), Low: c.vector(), Start: c.vector(),
	}
	m := &c.machine
	m.LastDirection = m.Direction
	if search {
		m.StrongWolfe = 1
	}
	c.begin()
	return c
}

// begin evaluates f for a new step.
func (c *caller) begin() {
	m := &c.machine
	m.Loss, m.Phase = c.f(c.x, c.grad), 0
	m.Evaluations++
}

// run resumes the machine until the step ends, and returns how.
func (c *caller) run(t *testing.T) Ask {
	for {
		ask, err := ResumeAt(uintptr(unsafe.Pointer(&c.machine)), int(unsafe.Sizeof(c.machine)), 1, nil)
		runtime.KeepAlive(c)
		require.NoError(t, err)
		m := &c.machine
		switch ask {
		case Evaluate:
			m.Loss = c.f(c.x, c.grad)
		case StorePair:
			c.pairs, c.ros = append(c.pairs, [2]uintptr{m.Y, m.S}), append(c.ros, m.Ro)
			c.alphas = make([]float64, len(c.ros))
			m.Pairs, m.PairCount, m.Ros, m.Alphas = address(c.pairs), len(c.pairs), address(c.ros), address(c.alphas)
			m.Y, m.S = c.vector(), c.vector()
		default:
			return ask
		}
	}
}

// rosenbrock has its minimum of 0 at ones.
func rosenbrock(x, grad []float64) (loss float64) {
	clear(grad)
	for i := range len(x) - 1 {
		a, b := 1-x[i], x[i+1]-x[i]*x[i]
		loss += a*a + 100*b*b
		grad[i] -= 2*a + 400*x[i]*b
		grad[i+1] += 200 * b
	}
	return loss
}

func TestMachineFindsAMinimum(t *testing.T) {
	c := newCaller([]float64{-1.5, 2, 0}, true, rosenbrock)
	c.machine.ToleranceGrad, c.machine.ToleranceChange = 1e-5, 1e-15
	ask := c.run(t)
	for range 10 {
		c.begin()
		ask = c.run(t)
	}
	assert.Equal(t, Optimal, ask)
	assert.InDeltaSlice(t, []float64{1, 1, 1}, c.x, 1e-6)
	assert.Positive(t, c.machine.PairCount)
}

// TestMachineDescends checks the first direction and the first step length: min(1, 1/Σ|g|)·LR along -g.
func TestMachineDescends(t *testing.T) {
	c := newCaller([]float64{3, -1}, false, func(x, grad []float64) float64 {
		grad[0], grad[1] = x[0], 4*x[1]
		return x[0]*x[0]/2 + 2*x[1]*x[1]
	})
	c.machine.MaxIter, c.machine.LR.Value = 1, .5
	require.Equal(t, Done, c.run(t))
	assert.Equal(t, []float64{3 - 3*.5/7, -1 + 4*.5/7}, c.x)
	assert.Equal(t, 1, c.machine.Iterations)
	assert.Equal(t, 1, c.machine.Evaluations)
}

func TestLineSearchFails(t *testing.T) {
	start := []float64{.5, 2}
	f := func(x, grad []float64) float64 { // NaN where the gradient is zero
		if grad[0], grad[1] = 1, 1; x[0] == start[0] {
			return 1
		}
		clear(grad)
		return math.NaN()
	}
	nan := newCaller(slices.Clone(start), true, f)
	require.Equal(t, NaNLoss, nan.run(t))
	assert.Equal(t, start, nan.x, "the parameters are back where the search began")
	assert.Equal(t, "the loss is NaN where the gradient meets the conditions", NaNLoss.String())
	long := newCaller(slices.Clone(start), true, f)
	long.segments[0].N, long.segments[1].N = 2, 2 // the same memory as float32
	m := &long.machine
	m.Float64, m.N = 0, 4
	m.Iterations, m.H, m.LR.Value = 1, Number{1, Int}, 1e300
	require.Equal(t, Overflow, long.run(t))
	assert.Equal(t, start, long.x)
	assert.Equal(t, "ask 0", Evaluate.String())
}

func TestResumeRefuses(t *testing.T) {
	for says, spoil := range map[string]func(c *caller){
		"0 elements in 2 segments":                     func(c *caller) { c.machine.N = 0 },
		"2 elements in 0 segments":                     func(c *caller) { c.machine.SegmentCount = 0 },
		"-1 pairs":                                     func(c *caller) { c.machine.PairCount = -1 },
		"0 iterations":                                 func(c *caller) { c.machine.MaxIter = 0 },
		"0 evaluations":                                func(c *caller) { c.machine.MaxEval = 0 },
		"phase -1":                                     func(c *caller) { c.machine.Phase = -1 },
		"phase 5":                                      func(c *caller) { c.machine.Phase = 5 },
		"an address is missing":                        func(c *caller) { c.machine.Kept = 4095 },
		"addresses [0x0 0x1] of pair 0":                func(c *caller) { c.pair(0, 1) },
		"2 elements in the segments, expected 3":       func(c *caller) { c.machine.N = 3 },
		"segment 1: 2 elements at":                     func(c *caller) { c.segments[1].N = 2 },
		"segment 0: -1 elements at":                    func(c *caller) { c.segments[0].N = -1 },
		"segment 0: 1 elements at 0x0 and":             func(c *caller) { c.segments[0].Param = 0 },
		"1 elements in the segments, expected 2":       func(c *caller) { c.segments[1].N = 0 },
		"2 elements in the segments, expected 1000000": func(c *caller) { c.machine.N = 1_000_000 },
	} {
		c := newCaller([]float64{.5, 2}, true, rosenbrock)
		spoil(c)
		before := c.machine
		_, err := c.machine.Resume(1, nil)
		var invalid *InvalidError
		require.ErrorAs(t, err, &invalid)
		require.ErrorContains(t, err, says)
		require.Equal(t, before, c.machine)
		require.Equal(t, []float64{.5, 2}, c.x)
	}
	m := new(Machine)
	at, size := uintptr(unsafe.Pointer(m)), int(unsafe.Sizeof(*m))
	for _, wrong := range []struct {
		at   uintptr
		size int
	}{{4096, 8}, {at, size + 8}, {at + 4, size}, {8, size}} {
		_, err := ResumeAt(wrong.at, wrong.size, 1, nil)
		require.ErrorContains(t, err, "a machine of ")
	}
	runtime.KeepAlive(m)
}

func (c *caller) pair(y, s uintptr) {
	c.pairs, c.ros, c.alphas = [][2]uintptr{{y, s}}, []float64{0}, []float64{0}
	c.machine.Pairs, c.machine.PairCount, c.machine.Ros, c.machine.Alphas = address(c.pairs), 1, address(c.ros), address(c.alphas)
}

func TestArithmetic(t *testing.T) {
	a := arithmetic{single: true}
	tenth, third := Number{.1, Float}, Number{1. / 3, Float}
	rounded := Number{float64(float32(.1)), Tensor}
	assert.Equal(t, Number{.1 + 1./3, Float}, a.add(tenth, third), "two floats are added in float64")
	assert.Equal(t, rounded, a.tensor(.1))
	assert.Equal(t, Number{float64(float32(.1) * float32(1./3)), Tensor}, a.mul(rounded, third))
	assert.Equal(t, Number{5, Int}, a.sub(Number{7, Int}, Number{2, Int}))
	assert.Equal(t, Number{3.5, Float}, a.div(Number{7, Int}, Number{2, Int}))
	seven := a.tensor(.7)
	assert.Equal(t, Number{float64(5 * float32(1/seven.Value)), Tensor}, a.div(Number{5, Int}, seven), "torch multiplies by the reciprocal")
	assert.NotEqual(t, a.tensor(5/seven.Value), a.div(Number{5, Int}, seven))
	assert.False(t, a.less(tenth, rounded), "compared as float32, they are equal")
	assert.True(t, arithmetic{}.less(tenth, rounded))
	nan := Number{math.NaN(), Float}
	assert.Equal(t, tenth, a.min(tenth, nan))
	assert.Equal(t, tenth, a.max(tenth, nan))
	assert.True(t, a.overflows(Number{1e39, Float}))
	assert.False(t, a.overflows(Number{math.Inf(1), Float}))
	assert.False(t, arithmetic{}.overflows(Number{1e39, Float}))
}
