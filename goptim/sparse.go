package goptim

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
	"runtime"
	"slices"
	"sync"
	"unsafe"

	"github.com/goptim/goptim/goptim/internal/cpow"
	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/goptim/internal/heap"
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// A SparseParam is a matrix to optimize of which a step has gradients for some rows, as of an embedding's weight.
type SparseParam[T Float] struct {
	Name    string  // for error messages; may be empty
	Value   []T     // rows of Width elements, one after the other; changed in place by Step
	Width   int     // elements in a row
	Indices []int64 // the rows that Grad has, in any order; a row may come more than once
	Grad    []T     // a row of Width elements for every index; only read; nil leaves the parameter out of the step
}

// A sparseRule is what optimizers differ in that move rows, whose states are columns: see rule.
type sparseRule[S any] interface {
	name() string
	check() error
	layout() engine.Layout
	initial(state int) float64
	scalars(n *now) S
	rowKernels() rowKernels[S]
	// sums reports whether the gradients of one row are added up first; else each is a step of its own.
	sums() bool
	// maximizes reports whether gradients are negated, which torch does before it adds them up.
	maximizes() bool
	options() []option
	keys() [engine.States]stateKey
}

// rowKernels are one step's arithmetic for either type of elements.
type rowKernels[S any] struct {
	f32 kernel.RowsFunc[S, float32]
	f64 kernel.RowsFunc[S, float64]
}

// sparseBase is what every sparse optimizer for Go programs has.
type sparseBase[T Float, S any] struct {
	params []*SparseParam[T]
	states []sparseState[T]
	row    engine.Row // of which scalars are checked
	log    scalarLog
	now    now
}

type sparseState[T Float] struct {
	step    float64
	columns [engine.States][]T
}

func newSparseBase[T Float, S any](r sparseRule[S], params []*SparseParam[T]) (sparseBase[T, S], error) {
	b := sparseBase[T, S]{params: slices.Clone(params), states: make([]sparseState[T], len(params))}
	if err := r.check(); err != nil {
		return b, err
	}
	if len(params) == 0 {
		return b, fmt.Errorf("goptim: %s: no parameters: %w", r.name(), ErrParam)
	}
	for i, p := range params {
		if p == nil {
			return b, fmt.Errorf("goptim: %s: parameter %d is nil: %w", r.name(), i, ErrParam)
		}
		if slices.Index(params, p) != i {
			return b, fmt.Errorf("goptim: %s: %s is given twice: %w", r.name(), p.describe(i), ErrParam)
		}
		if err := p.check(r.name(), i); err != nil {
			return b, err
		}
		for k, use := range r.layout().State {
			if use == engine.Column {
				b.states[i].columns[k] = slices.Repeat([]T{T(r.initial(k))}, len(p.Value))
			}
		}
	}
	return b, nil
}

func (b *sparseBase[T, S]) checkAll(r sparseRule[S]) error {
	err := r.check()
	if err != nil {
		return err
	}
	for i, p := range b.params {
		if p.Grad != nil {
			err = errors.Join(err, b.checkScalars(r, i))
		}
		err = errors.Join(err, p.check(r.name(), i))
		for _, c := range b.states[i].columns {
			if c != nil && len(c) != len(p.Value) {
				err = errors.Join(err, fmt.Errorf("goptim: %s: %s has %d elements, expected %d as at the first step: %w",
					r.name(), p.describe(i), len(p.Value), len(c), ErrParam))
				break
			}
		}
	}
	return err
}

// checkScalars reports whether the scalars of a parameter's next step cannot be computed.
func (b *sparseBase[T, S]) checkScalars(r sparseRule[S], i int) error {
	b.log.begin()
	b.row.Kind = engine.KindOf(dtype[T](), engine.None)
	b.now = now{row: &b.row, i: i, log: &b.log, t: b.states[i].step + 1, pow: cpow.Pow}
	if r.scalars(&b.now); b.log.err != nil {
		return fmt.Errorf("goptim: %s: %w", r.name(), b.log.err)
	}
	return nil
}

// step updates every row that has a gradient. On an error that wraps ErrOption or ErrParam nothing has changed.
func (b *sparseBase[T, S]) step(r sparseRule[S], passes *sync.Pool, threads int) error {
	if err := b.checkAll(r); err != nil {
		return err
	}
	if threads <= 0 {
		threads = runtime.GOMAXPROCS(0)
	}
	for i, p := range b.params {
		if p.Grad == nil {
			continue
		}
		s := &b.states[i]
		s.step++
		t := SparseTable{
			Param: address(p.Value), Rows: len(p.Value) / p.Width, Width: p.Width, Float64: dtype[T]() == engine.Float64,
			Indices: uintptr(unsafe.Pointer(unsafe.SliceData(p.Indices))), Values: address(p.Grad), N: len(p.Indices),
			Step: s.step, Threads: threads,
		}
		for k, c := range s.columns {
			t.State[k] = address(c)
		}
		err := stepSparse(r, passes, t)
		runtime.KeepAlive(b) // the table holds addresses
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *SparseParam[T]) describe(i int) string {
	return (&Param[T]{Name: p.Name}).describe(i)
}

func (p *SparseParam[T]) check(optimizer string, i int) error {
	refuse := func(format string, a ...any) error {
		return fmt.Errorf("goptim: %s: %s: %s: %w", optimizer, p.describe(i), fmt.Sprintf(format, a...), ErrParam)
	}
	switch {
	case p.Width < 1:
		return refuse("Width is %d, expected at least 1", p.Width)
	case len(p.Value)%p.Width != 0:
		return refuse("%d elements, expected a multiple of Width, which is %d", len(p.Value), p.Width)
	case overlap(p.Value, p.Grad):
		return (&Param[T]{Name: p.Name}).errOverlap(optimizer, i)
	case len(p.Grad) != len(p.Indices)*p.Width:
		return refuse("the gradient has %d elements, expected %d, for %d indices", len(p.Grad), len(p.Indices)*p.Width, len(p.Indices))
	}
	for _, index := range p.Indices {
		if index < 0 || index >= int64(len(p.Value)/p.Width) {
			return refuse("index %d, expected one of %d rows", index, len(p.Value)/p.Width)
		}
	}
	return nil
}

// A SparseTable is the work of one step on one parameter in memory that another language owns. It is for bindings. The
// addresses are of dense memory: Rows times Width elements of the parameter and its states, N indices (int64) of rows,
// and N rows of values. The caller answers for them.
type SparseTable struct {
	Param           uintptr
	State           [engine.States]uintptr // in the order that the optimizer names; 0 for one that it does without
	Rows, Width     int
	Float64         bool // the type of the elements; else float32
	Indices, Values uintptr
	N               int
	Order           uintptr // of N places (int64) that put Indices in order; 0: a row's gradients are taken as they come
	Step            float64 // the number of this step, from 1
	Threads         int     // as many threads as may work on the step
	Team            func(threads int, work func(thread int))
	Pow             func(x, y float64) float64 // C's pow, if the caller has it; nil: this package's own
}

func (t *SparseTable) check(l engine.Layout) error {
	if t.Rows < 0 || t.Width < 1 || t.N < 0 || t.Rows > math.MaxInt64/8/t.Width || t.N > math.MaxInt32 ||
		bits.Len(uint(t.Rows))+bits.Len(uint(t.N)) > 64 {
		return fmt.Errorf("%d rows of %d elements, %d of them with a gradient: %w", t.Rows, t.Width, t.N, ErrParam)
	}
	if t.N == 0 || t.Rows == 0 {
		return nil
	}
	least := min(t.Param, t.Indices, t.Values)
	for k, use := range l.State {
		if use == engine.Column {
			least = min(least, t.State[k])
		}
	}
	if least < 4096 {
		return fmt.Errorf("address %#x: %w", least, ErrParam)
	}
	return nil
}

// stepSparse runs one step of a rule over the rows of a table, with a pass from the rule's pool.
func stepSparse[S any](r sparseRule[S], passes *sync.Pool, t SparseTable) error {
	if err := t.check(r.layout()); err != nil {
		return fmt.Errorf("goptim: %s: %w", r.name(), err)
	}
	p, _ := passes.Get().(*sparsePass[S])
	if p == nil {
		p = new(sparsePass[S])
	}
	defer func() {
		p.table, p.row, p.now = SparseTable{}, [1]engine.Row{}, now{} // see stepTables
		passes.Put(p)
	}()
	if err := p.rows.find(&t); err != nil {
		return fmt.Errorf("goptim: %s: %w", r.name(), err)
	}
	kind := engine.KindOf(engine.Float32, engine.None)
	if t.Float64 {
		kind = engine.KindOf(engine.Float64, engine.None)
	}
	// The engine splits the elements of the rows that have a gradient, as if they lay behind each other.
	p.row[0] = engine.Row{N: int64(p.rows.len()) * int64(t.Width), Kind: kind, Param: t.Param, Grad: t.Values, State: t.State}
	p.log.begin()
	p.now = now{row: &p.row[0], log: &p.log, t: t.Step, pow: t.Pow}
	if p.now.pow == nil {
		p.now.pow = cpow.Pow
	}
	p.table, p.kernels, p.h, p.sums, p.negated = t, r.rowKernels(), r.scalars(&p.now), r.sums(), r.maximizes()
	if p.log.err != nil {
		return fmt.Errorf("goptim: %s: %w", r.name(), p.log.err)
	}
	if err := engine.Run(p, p.row[:], t.Threads, t.Team); err != nil {
		return fmt.Errorf("goptim: %s: %w", r.name(), err)
	}
	return nil
}

// touched are the rows of a parameter that have a gradient, in order.
type touched struct {
	entries []entry
	starts  []int32 // where in entries each row begins, and at last where the last one ends
	places  uint    // bits of an entry that are the place
	spare   []entry
}

// An entry is a row of the gradient: the index of the parameter's row, and the gradient's place in the lower bits.
type entry uint64

func (r *touched) len() int { return max(len(r.starts)-1, 0) }

func (r *touched) index(e entry) int { return int(e >> r.places) }

func (r *touched) place(e entry) int { return int(e & (1<<r.places - 1)) }

// find puts the rows of the gradient in order, and finds where each row of the parameter begins among them.
func (r *touched) find(t *SparseTable) error {
	r.places = uint(bits.Len(uint(t.N)))
	var err error
	if r.entries, err = heap.Grow(r.entries, t.N); err == nil {
		r.spare, err = heap.Grow(r.spare, t.N)
	}
	if err == nil {
		r.starts, err = heap.Grow(r.starts, t.N+1)
	}
	if err != nil {
		return err
	}
	r.starts = r.starts[:0]
	if t.N == 0 || t.Rows == 0 {
		return nil
	}
	last, ordered := int64(0), true
	for i, index := range unsafe.Slice((*int64)(engine.Pointer(t.Indices)), t.N) {
		if uint64(index) >= uint64(t.Rows) {
			return fmt.Errorf("index %d in the gradient, expected one of %d rows: %w", index, t.Rows, ErrParam)
		}
		ordered = ordered && index >= last
		last = index
		r.entries[i] = entry(index)<<r.places | entry(i)
	}
	if t.Order != 0 {
		for i, place := range unsafe.Slice((*int64)(engine.Pointer(t.Order)), t.N) {
			if uint64(place) >= uint64(t.N) || (i > 0 && r.index(r.entries[place]) < r.index(r.spare[i-1])) {
				return fmt.Errorf("place %d of the order is %d: %w", i, place, ErrParam)
			}
			r.spare[i] = r.entries[place]
		}
		r.entries, r.spare = r.spare, r.entries
	} else if !ordered {
		r.sort(t.Rows)
	}
	for i, e := range r.entries {
		if i == 0 || r.index(e) != r.index(r.entries[i-1]) {
			r.starts = append(r.starts, int32(i))
		}
	}
	r.starts = append(r.starts, int32(t.N))
	return nil
}

// sort puts the entries in order by radix; those of one row stay as they came.
func (r *touched) sort(rows int) {
	const digit = 11
	var ends [1 << digit]int32
	for shift := r.places; (rows-1)>>(shift-r.places) > 0; shift += digit {
		clear(ends[:])
		for _, e := range r.entries {
			ends[e>>shift&(1<<digit-1)]++
		}
		sum := int32(0)
		for d, n := range ends {
			ends[d] = sum
			sum += n
		}
		for _, e := range r.entries {
			d := e >> shift & (1<<digit - 1)
			r.spare[ends[d]] = e
			ends[d]++
		}
		r.entries, r.spare = r.spare, r.entries
	}
}

// A sparsePass is one step over the rows that have a gradient.
type sparsePass[S any] struct {
	table   SparseTable
	kernels rowKernels[S]
	h       S
	sums    bool
	negated bool
	rows    touched
	row     [1]engine.Row
	log     scalarLog
	now     now
}

// Update implements engine.Pass.
func (p *sparsePass[S]) Update(part engine.Part) {
	lo, hi := part.Lo, part.Hi
	if p.table.Float64 {
		updateRows(p, p.kernels.f64, f64.Accumulate, lo, hi)
	} else {
		updateRows(p, p.kernels.f32, f32.Accumulate, lo, hi)
	}
}

// Rows lie anywhere in memory, and a processor that waits for each in turn does little else: they are asked for so many
// cache lines of a column before their turn, or so many rows, if they are long.
const aheadLines, aheadRows = 32, 4

// batch is how many rows a kernel takes in a call.
const batch = 8

// A bench is where a thread prepares rows for a kernel: on the heap, see kernel.Apply.
type bench[T Float] struct {
	parts [batch]kernel.Part[T]
	adds  [batch]kernel.Part[T]
	sums  []T // a row for every part whose gradients are added up
	asked [16]uintptr
}

var benches32, benches64 sync.Pool

func benches[T Float]() *sync.Pool {
	if dtype[T]() == engine.Float32 {
		return &benches32
	}
	return &benches64
}

func updateRows[S any, T Float](p *sparsePass[S], f kernel.RowsFunc[S, T], accumulate kernel.RowsFunc[kernel.None, T], lo, hi int) {
	t, r, width := &p.table, &p.rows, p.table.Width
	size := t.Rows * width
	param, values := elements[T](t.Param, size), elements[T](t.Values, t.N*width)
	columns := append(make([]uintptr, 0, 1+engine.States), t.Param)
	var states [engine.States][]T
	for k, a := range t.State {
		if a != 0 {
			states[k] = elements[T](a, size)
			columns = append(columns, a)
		}
	}
	b, _ := benches[T]().Get().(*bench[T])
	if b == nil {
		b = new(bench[T])
	}
	defer func() {
		clear(b.parts[:])
		clear(b.adds[:])
		benches[T]().Put(b)
	}()

	rowBytes := uintptr(width) * unsafe.Sizeof(T(0))
	lines := min(int(rowBytes+63)/64, 16)
	ahead := max(aheadRows, aheadLines/lines)
	asked := int(r.starts[lo/width]) // entries whose gradient has been asked for
	filled, length := 0, 0           // parts, and the length of each
	flush := func() {
		kernel.ApplyRows(f, &p.h, param, states, b.parts[:filled], length)
		filled = 0
	}
	for lo < hi {
		row, first := lo/width, lo%width
		n := min(width-first, hi-lo)
		whole := n - n%kernel.Lanes[T]()
		start, end := int(r.starts[row]), int(r.starts[row+1])
		ask := b.asked[:0]
		if next := row + ahead; next < r.len() {
			at := uintptr(r.index(r.entries[r.starts[next]])) * rowBytes
			for _, a := range columns {
				ask = append(ask, a+at)
			}
		}
		for ; asked < min(end+ahead, len(r.entries)); asked++ {
			if len(ask) == cap(ask) {
				kernel.Prefetch(ask, lines)
				ask = ask[:0]
			}
			ask = append(ask, t.Values+uintptr(r.place(r.entries[asked]))*rowBytes)
		}
		kernel.Prefetch(ask, lines)

		if n != length && filled > 0 {
			flush()
		}
		length = n
		at := r.index(r.entries[start])*width + first
		gradient := func(i int) []T {
			from := r.place(r.entries[i])*width + first
			return values[from : from+n : from+n]
		}
		i := start
		if p.sums && end-start > 1 {
			sum := heap.Grown(&b.sums, batch*n)[filled*n:][:n]
			copy(sum, gradient(start))
			for i = start + 1; i < end; {
				k := 0
				for ; k < batch && i < end; k, i = k+1, i+1 {
					g := gradient(i)
					b.adds[k] = kernel.Part[T]{Grad: g}
					for j := whole; j < n; j++ { // a copy into a vector would take longer
						sum[j] += g[j]
					}
				}
				kernel.ApplyRows(accumulate, nil, sum, [engine.States][]T{}, b.adds[:k], whole)
			}
			if p.negated { // by the kernel: but a zero may have the other sign than the sum of negated gradients
				for j, x := range sum {
					if x == 0 {
						x = -gradient(start)[j]
						for i := start + 1; i < end; i++ {
							x -= gradient(i)[j]
						}
						sum[j] = -x
					}
				}
			}
			b.parts[filled] = kernel.Part[T]{At: at, Grad: sum}
			filled++
		}
		for ; i < end; i++ {
			if filled == batch {
				flush()
			}
			b.parts[filled] = kernel.Part[T]{At: at, Grad: gradient(i)}
			filled++
		}
		if filled == batch {
			flush()
		}
		lo += n
	}
	if filled > 0 {
		flush()
	}
}

func elements[T Float](address uintptr, n int) []T {
	return unsafe.Slice((*T)(engine.Pointer(address)), n)
}
