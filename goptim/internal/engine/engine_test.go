package engine

import (
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/goptim/goptim/goptim/internal/fpstate"
)

// counting adds one to every element of its rows' counts, and panics at one row.
type counting struct {
	counts [][]int32
	panics int // the row that panics; -1 for none
}

func (c *counting) Update(p Part) {
	for row := p.First; row <= p.Last; row++ {
		if row == c.panics {
			panic("on purpose")
		}
		lo, hi := p.Of(row, len(c.counts[row]))
		for i := range c.counts[row][lo:hi] {
			c.counts[row][lo+i]++
		}
	}
}

// rowsOf returns rows with the given sizes and separate parameters, and a pass that counts updates.
func rowsOf(sizes ...int) ([]Row, *counting) {
	rows, pass := make([]Row, len(sizes)), &counting{panics: -1}
	for i, n := range sizes {
		pass.counts = append(pass.counts, make([]int32, n))
		rows[i] = Row{N: int64(n), Types: TypesOf(Float32, None)}
		if n > 0 {
			rows[i].Param = uintptr(unsafe.Pointer(&pass.counts[i][0]))
		}
	}
	return rows, pass
}

func requireEachOnce(t *testing.T, pass *counting, times int32) {
	t.Helper()
	for row, counts := range pass.counts {
		if i := slices.IndexFunc(counts, func(n int32) bool { return n != times }); i >= 0 {
			require.Failf(t, "updates", "row %d, element %d: %d times, expected %d", row, i, counts[i], times)
		}
	}
}

func TestEveryElementOnce(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	many := make([]int, 3000)
	for i := range many {
		many[i] = random.IntN(700)
	}
	for name, sizes := range map[string][]int{
		"none":          {},
		"empty":         {0, 0},
		"small":         {1, 0, 5},
		"one":           {minParallel},
		"one and a bit": {minParallel + 1},
		"uneven":        {0, 3, minParallel, 0, 0, 1, 2*minParallel + 77, 0},
		"many":          many,
	} {
		for _, threads := range []int{0, 1, 2, 3, 16} {
			t.Run(fmt.Sprintf("%s/%d", name, threads), func(t *testing.T) {
				rows, pass := rowsOf(sizes...)
				for i := range int32(3) {
					require.NoError(t, Run(pass, rows, threads, nil))
					requireEachOnce(t, pass, i+1)
				}
			})
		}
	}
}

func TestPanicIsAnError(t *testing.T) {
	for _, n := range []int{5, 4 * minParallel} {
		rows, pass := rowsOf(1, n, 1)
		pass.panics = 1
		err := Run(pass, rows, 2, nil)
		require.ErrorContains(t, err, "on purpose")
		require.ErrorContains(t, err, "engine_test.go", "the place of the panic")
		pass.panics = -1
		require.NoError(t, Run(pass, rows, 2, nil), "the next run")
	}
}

func TestStepsAtTheSameTime(t *testing.T) {
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			rows, pass := rowsOf(minParallel, 3, minParallel)
			for i := range int32(20) {
				if assert.NoError(t, Run(pass, rows, 2, nil)) {
					requireEachOnce(t, pass, i+1)
				}
			}
		})
	}
	wg.Wait()
}

// inOrder records the rows that it updates. It is not safe for concurrent use.
type inOrder struct{ rows []int }

func (p *inOrder) Update(part Part) {
	for row := part.First; row <= part.Last; row++ {
		p.rows = append(p.rows, row)
	}
}

func TestOverlappingRowsRunInOrder(t *testing.T) {
	rows, pass := rowsOf(2*minParallel, minParallel, 1)
	rows[1].Param = rows[0].Param + 4*minParallel
	var p inOrder
	require.NoError(t, Run(&p, rows, 2, nil))
	assert.Equal(t, []int{0, 1, 2}, p.rows)
	rows[1].Param = uintptr(unsafe.Pointer(&pass.counts[1][0]))
	rows[1].Grad = rows[0].Param + 4
	p.rows = nil
	require.NoError(t, Run(&p, rows, 2, nil))
	assert.Equal(t, []int{0, 1, 2}, p.rows, "a gradient is another row's parameter")
}

// unprepared is a pass whose rows must be updated in order.
type unprepared struct{ inOrder }

func (p *unprepared) Prepare() bool { return false }

func TestUnpreparedRowsRunInOrder(t *testing.T) {
	for _, n := range []int{minParallel, 0} {
		rows, _ := rowsOf(n, 0, n)
		var p unprepared
		require.NoError(t, Run(&p, rows, 2, nil))
		assert.Equal(t, []int{0, 1, 2}, p.rows)
	}
	require.NoError(t, Run(&unprepared{}, nil, 2, nil), "no rows")
}

func TestCheck(t *testing.T) {
	const somewhere = 1 << 20
	layout := LayoutOf(true, Column, Scalar)
	good := Row{
		N: 3, Types: TypesOf(Float64, Float32),
		Param: somewhere, Grad: somewhere, Step: somewhere, State: [States]uintptr{somewhere, somewhere},
	}
	good.StateType[0] = Float64
	good.AddScalar(1, Float32)
	require.NoError(t, good.Check(&layout))
	for _, c := range []struct {
		says  string
		spoil func(r *Row)
	}{
		{"elements of dtype 9", func(r *Row) { r.ParamType = 9 }},
		{"elements of bfloat16; expected float32 or float64", func(r *Row) { r.ParamType = BFloat16 }},
		{"a gradient of float16; expected float64", func(r *Row) { r.GradType = Float16 }},
		{"state 0 of float32; expected float64", func(r *Row) { r.StateType[0] = Float32 }},
		{"state 0 has the flag of a scalar: true", func(r *Row) { r.AddScalar(0, Float64) }},
		{"state 1 has the flag of a scalar: false", func(r *Row) { r.Flags = 0 }},
		{"-1 elements", func(r *Row) { r.N = -1 }},
		{"elements", func(r *Row) { r.N = 1 << 61 }},
		{"step", func(r *Row) { r.Step = 0 }},
		{"step of none", func(r *Row) { r.StepType = None }},
		{"the parameter", func(r *Row) { r.Param = 0 }},
		{"the gradient", func(r *Row) { r.Grad = 4095 }},
		{"state 1", func(r *Row) { r.State[1] = 0 }},
		{"state 1 of none", func(r *Row) { r.StateType[1] = None }},
		{"state 0", func(r *Row) { r.State[0] = ^uintptr(0) - 7 }},
		{"the parameter", func(r *Row) { r.Param = math.MaxInt64 - 3*8 + 1 }},
	} {
		r := good
		c.spoil(&r)
		assert.ErrorContains(t, r.Check(&layout), c.says)
	}
	empty := Row{N: 0, Types: good.Types, Step: somewhere, State: [States]uintptr{0, somewhere}}
	require.NoError(t, empty.Check(&layout), "without elements, no column has an address")
	last := good
	last.Param = math.MaxInt64 - 3*8
	require.NoError(t, last.Check(&layout))
	last.ParamType, last.GradType, last.StateType[0], last.Param = Float32, Float32, Float32, math.MaxInt64-3*4
	require.NoError(t, last.Check(&layout))
	last.Param++
	assert.ErrorContains(t, last.Check(&layout), "the parameter")
}

// TestCheckOfNarrowRows checks rows of 16-bit types and of several types.
func TestCheckOfNarrowRows(t *testing.T) {
	const somewhere = 1 << 20
	layout := LayoutOf(false, Column, Column)
	layout.Narrow = true
	row := func(param, grad DType, states ...DType) Row {
		r := Row{N: 3, Types: Types{ParamType: param, GradType: grad}, Param: somewhere, Grad: somewhere}
		for k, d := range states {
			r.State[k], r.StateType[k] = somewhere, d
		}
		return r
	}
	master := func(r Row, d DType) Row {
		r.Flags |= Master
		r.State[MasterState], r.StateType[MasterState] = somewhere, d
		return r
	}
	kahan := func(r Row, d DType) Row {
		r = master(r, d)
		r.Flags ^= Master | Kahan
		return r
	}
	stochastic := func(r Row, step uintptr) Row {
		r.Flags |= Stochastic
		r.Step, r.StepType = step, Float32
		return r
	}
	for _, c := range []struct {
		row   Row
		says  string
		mixed bool
	}{
		{kahan(row(BFloat16, BFloat16, Float32, Float32), BFloat16), "", true},
		{kahan(row(BFloat16, BFloat16, Float32, Float32), Float32), "a compensation in float32; expected bfloat16", false},
		{kahan(row(Float32, Float32, Float32, Float32), Float32), "a compensation of float32; expected bfloat16 or float16", false},
		{stochastic(row(Float16, Float16, Float32, Float32), somewhere), "", true},
		{stochastic(row(Float16, Float16, Float32, Float32), 0), "address 0x0 of the step", false},
		{stochastic(row(Float32, Float32, Float32, Float32), somewhere), "stochastic rounding of float32", false},
		{stochastic(kahan(row(BFloat16, BFloat16, Float32, Float32), BFloat16), somewhere), "flags 0x18; expected one of 0x1c", false},
		{row(BFloat16, BFloat16, BFloat16, BFloat16), "", true},
		{row(Float16, Float16, Float32, BFloat16), "", true},
		{row(Float32, Float32, Float32, BFloat16), "", true},
		{row(Float32, Float32, Float32, Float32), "", false},
		{row(Float64, Float64, Float64, Float64), "", false},
		{master(row(BFloat16, BFloat16, BFloat16, BFloat16), Float32), "", true},
		{row(Float64, Float64, Float64, Float32), "state 1 of float32; expected float64", false},
		{row(BFloat16, BFloat16, BFloat16, Float64), "state 1 of float64; expected bfloat16", false},
		{row(BFloat16, BFloat16, BFloat16, None), "state 1 of none; expected bfloat16", false},
		{row(BFloat16, Float32, BFloat16, BFloat16), "a gradient of float32; expected bfloat16", false},
		{row(None, None, BFloat16, BFloat16), "elements of none; expected float32, float64, bfloat16 or float16", false},
		{master(row(Float32, Float32, Float32, Float32), Float32), "a master copy of float32", false},
		{master(row(BFloat16, BFloat16, BFloat16, BFloat16), BFloat16), "a master copy in bfloat16", false},
	} {
		err := c.row.Check(&layout)
		if c.says != "" {
			assert.ErrorContains(t, err, c.says)
			continue
		}
		require.NoError(t, err)
		assert.Equal(t, c.mixed, c.row.Mixed(&layout))
		if c.mixed {
			c.row.State[0] = math.MaxInt64 - 3*2 + 1 // too high for any type
			assert.ErrorContains(t, c.row.Check(&layout), "state 0")
		}
	}
	last := row(BFloat16, BFloat16, Float32, BFloat16)
	last.State[0] = math.MaxInt64 - 3*4
	require.NoError(t, last.Check(&layout))
	last.State[0]++
	assert.ErrorContains(t, last.Check(&layout), "state 0")
	scalar := row(Float16, Float16, Float16)
	scalar.AddScalar(1, BFloat16)
	scalar.State[1] = somewhere
	ofScalar := LayoutOf(false, Column, Scalar)
	assert.ErrorContains(t, scalar.Check(&ofScalar), "elements of float16")
	ofScalar.Narrow = true
	require.NoError(t, scalar.Check(&ofScalar))
	scalar.StateType[1] = None
	assert.ErrorContains(t, scalar.Check(&ofScalar), "state 1 of none; expected float32, float64, bfloat16 or float16")
	without := master(row(BFloat16, BFloat16, BFloat16, BFloat16), Float32)
	without.State[MasterState] = 0
	assert.ErrorContains(t, without.Check(&layout), "state 4")
	layout.Narrow = false
	assert.ErrorContains(t, last.Check(&layout), "elements of bfloat16; expected float32 or float64")
	mixed := row(Float32, Float32, Float32, BFloat16)
	assert.ErrorContains(t, mixed.Check(&layout), "state 1 of bfloat16; expected float32")
}

// TestScalarsOf16Bits reads and sets scalars, which are rounded to nearest even.
func TestScalarsOf16Bits(t *testing.T) {
	for d, c := range map[DType]struct {
		encoding uint16
		rounded  float64
	}{BFloat16: {0x40ca, 6.3125}, Float16: {0x464d, 6.30078125}} {
		x := new(uint16)
		r := Row{Step: Address(unsafe.Pointer(x)), Types: Types{StepType: d}}
		r.State[2], r.StateType[2] = r.Step, d
		assert.Equal(t, c.rounded, d.Round(6.3), d)
		assert.Equal(t, c.rounded, r.SetNumber(2, 6.3), d)
		assert.Equal(t, c.encoding, *x, d)
		assert.Equal(t, c.rounded, r.Number(2), d)
		r.SetSteps(4096)
		assert.Equal(t, 4096., r.Tick(), d) // 4097 is not a number of 16 bits
	}
}

func TestEvent(t *testing.T) {
	var e event
	heard := make(chan uint32)
	go func() { heard <- e.wait(0) }()
	select {
	case n := <-heard:
		require.Failf(t, "wait", "it returned %d before a signal", n)
	case <-time.After(5 * time.Millisecond):
	}
	e.signal()
	assert.Equal(t, uint32(1), <-heard)
	e.signal()
	e.signal()
	assert.Equal(t, uint32(3), e.wait(1), "signals while nobody waits")
}

func TestTick(t *testing.T) {
	single, double := float32(1<<24), float64(1<<24)
	r := Row{Types: TypesOf(Float32, Float32), Step: uintptr(unsafe.Pointer(&single))}
	assert.Equal(t, float64(1<<24), r.Tick(), "a float32 step stops counting at 2²⁴, as torch's does")
	r = Row{Types: TypesOf(Float32, Float64), Step: uintptr(unsafe.Pointer(&double))}
	assert.Equal(t, float64(1<<24+1), r.Tick())
	assert.Equal(t, float64(1<<24+1), double)
}

func TestNumbers(t *testing.T) {
	single, double := float32(0), 0.
	r := Row{
		Types: TypesOf(Float64, None),
		State: [States]uintptr{uintptr(unsafe.Pointer(&single)), 0, uintptr(unsafe.Pointer(&double))},
	}
	r.AddScalar(0, Float32)
	r.AddScalar(2, Float64)
	assert.Equal(t, float64(float32(.1)), r.SetNumber(0, .1))
	assert.Equal(t, .1, r.SetNumber(2, .1))
	assert.Equal(t, []float64{float64(float32(.1)), .1}, []float64{r.Number(0), r.Number(2)})
	assert.Equal(t, Float64, r.DType())
	assert.False(t, r.First())
}

func TestTeam(t *testing.T) {
	rows, pass := rowsOf(minParallel, 3, minParallel)
	var asked int
	team := func(threads int, work func(thread int)) {
		asked = threads
		var wg sync.WaitGroup
		for i := range threads {
			wg.Go(func() { work(i) })
		}
		wg.Wait()
	}
	for i := range int32(20) {
		require.NoError(t, Run(pass, rows, 2, team))
		requireEachOnce(t, pass, i+1)
	}
	assert.Equal(t, 2, asked)
	pass.panics = 2
	require.ErrorContains(t, Run(pass, rows, 2, team), "panic")
}

// starts records the starts of the parts of one row, in order. It is not safe for concurrent use.
type starts struct{ at []int }

func (s *starts) Update(p Part) { s.at = append(s.at, p.Lo) }

// TestThreadBeginsWithItsShare starts one thread of a team, as if the others were late. It processes its own share of the
// elements, which is the same in every step, and then the other shares.
func TestThreadBeginsWithItsShare(t *testing.T) {
	const threads = 4
	rows, _ := rowsOf(8 * minParallel)
	for thread := -1; thread < threads; thread++ {
		for range 2 {
			var pass starts
			require.NoError(t, Run(&pass, rows, threads, func(n int, work func(thread int)) {
				assert.Equal(t, threads, n)
				work(thread)
			}))
			chunk, n := pass.at[1]-pass.at[0], len(pass.at)
			require.Equal(t, 32*threads, n)
			for i, at := range pass.at {
				require.Equal(t, (max(thread, 0)*32+i)%n*chunk, at, "part %d of thread %d", i, thread)
			}
		}
	}
}

func TestEach(t *testing.T) {
	for _, n := range []int{0, 1, 2, 1000} {
		for _, threads := range []int{0, 1, 2, 7} {
			done := make([]atomic.Int32, n)
			require.NoError(t, Each(n, threads, nil, func(i int) { done[i].Add(1) }))
			for i := range done {
				require.EqualValues(t, 1, done[i].Load(), "%d of %d, %d threads", i, n, threads)
			}
		}
	}
	err := Each(10, 2, nil, func(i int) {
		if i == 3 {
			panic("three")
		}
	})
	require.ErrorContains(t, err, "panic in Go: three")
	require.NoError(t, Each(10, 2, nil, func(int) {}), "after a panic")
}

// TestLongRowsAreSplit uses one thread. The parts of long rows come in order, and none delays the garbage collector for long.
func TestLongRowsAreSplit(t *testing.T) {
	rows, counts := rowsOf(3, 2*maxSerial+1, 0, maxSerial-1, 0, 7, 0)
	var pass starts
	require.NoError(t, Run(&pass, rows, 1, nil))
	assert.Equal(t, []int{0, maxSerial - 3, 2*maxSerial - 3, maxSerial - 4}, pass.at)
	require.NoError(t, Run(counts, rows, 1, nil))
	requireEachOnce(t, counts, 1)
}

// states records the floating-point states of the updating threads.
type states struct {
	mu   sync.Mutex
	seen map[fpstate.State]int
	wait chan struct{} // until two threads are at work
}

func (s *states) Update(Part) {
	select {
	case s.wait <- struct{}{}:
	case <-s.wait:
	case <-time.After(10 * time.Millisecond):
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen[fpstate.Get()]++
}

func TestWorkersUseCallersFloatingPointState(t *testing.T) {
	flush, ok := map[string]fpstate.State{"amd64": 0x8040, "arm64": 1 << 24}[runtime.GOARCH]
	if !ok {
		t.Skip("the state is not known on this architecture")
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before := fpstate.Get()
	rows, _ := rowsOf(4 * minParallel)
	for _, state := range []fpstate.State{before, before | flush, before} {
		pass := states{seen: map[fpstate.State]int{}, wait: make(chan struct{})}
		fpstate.Set(state)
		err := Run(&pass, rows, 2, nil)
		fpstate.Set(before)
		require.NoError(t, err)
		assert.Equal(t, map[fpstate.State]int{state: 2 * chunksPerThread}, pass.seen)
	}
}
