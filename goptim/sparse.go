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
	"github.com/goptim/goptim/internal/steps"
)

// A SparseParam is a matrix with gradients for only some of its rows in each step, such as the weight of an embedding.
type SparseParam[T Float] struct {
	Name    string  // for error messages; may be empty
	Value   []T     // rows of Width elements, in row-major order; changed in place by Step
	Width   int     // elements in a row
	Indices []int64 // the rows of Grad, in any order; a row may be repeated
	Grad    []T     // a row of Width elements per index; only read; nil excludes the parameter from the step
}

// A sparseSpec is what distinguishes one optimizer of sparse gradients. Its options and states are those of a class. The
// states are tensors of the parameter's shape.
type sparseSpec[O, S any] struct {
	*class[O]
	sparseRule
	zero       []*field
	maximize   *field
	scalarsOf  func(o *O, n *now) S
	arithmetic rowKernels[S]
	passes     sync.Pool // of *sparsePass
}

// A sparseRule is what is specific to sparse gradients.
type sparseRule struct {
	name  string   // name of the optimizer
	sums  bool     // gradients of the same row are summed first; otherwise each is a separate step
	zeros []string // options that must be zero because they would move rows without a gradient
}

// sparseSpecOf registers an optimizer of sparse gradients.
func sparseSpecOf[O, S any](
	c *class[O], r sparseRule, scalars func(o *O, n *now) S, f32 kernel.RowsFunc[S, float32], f64 kernel.RowsFunc[S, float64],
) *sparseSpec[O, S] {
	s := &sparseSpec[O, S]{class: c, sparseRule: r, maximize: c.field("maximize"), scalarsOf: scalars, arithmetic: rowKernels[S]{f32, f64}}
	for _, key := range r.zeros {
		s.zero = append(s.zero, c.field(key))
	}
	k := s.kind()
	if k.Name != r.name {
		k.Name, k.Classes = r.name, map[string]map[string]float64{r.name: {}}
	}
	k.Sparse, k.Sums, k.Zero, k.Step, k.Spec = true, r.sums, r.zeros, s.stepGroups, s
	steps.Register(k)
	return s
}

func (s *sparseSpec[O, S]) title() string { return s.sparseRule.name }

// checkOptions returns an error for options that are out of range or that must be zero and are not.
func (s *sparseSpec[O, S]) checkOptions(o *O) error {
	err := s.class.checkOptions(o)
	for _, f := range s.zero {
		x := f.get(unsafe.Pointer(o), 0)
		if wrong := require(x == 0, s.title(), f.name, x, "0 with sparse gradients"); wrong != nil {
			err = errors.Join(err, wrong)
		}
	}
	return err
}

// rowKernels are the kernels of a step, for each element type.
type rowKernels[S any] struct {
	f32 kernel.RowsFunc[S, float32]
	f64 kernel.RowsFunc[S, float64]
}

// sparse is embedded in each optimizer of sparse gradients, like elementwise.
type sparse[T Float, O, S any] struct {
	self    *sparse[T, O, S]
	spec    *sparseSpec[O, S]
	o       *O
	workers *int
	params  []*SparseParam[T]
	states  []sparseState[T]
	row     engine.Row // the row whose scalars are checked
	log     scalarLog
	now     now
}

type sparseState[T Float] struct {
	step    float64
	columns [engine.Columns][]T
}

// begin initializes an optimizer with a spec, options and parameters. It replaces zero options by their defaults.
func (b *sparse[T, O, S]) begin(s *sparseSpec[O, S], o *O, workers *int, params []*SparseParam[T]) error {
	s.setDefaults(o)
	*b = sparse[T, O, S]{
		self: b, spec: s, o: o, workers: workers, params: slices.Clone(params), states: make([]sparseState[T], len(params)),
	}
	if err := s.checkOptions(o); err != nil {
		return err
	}
	if len(params) == 0 {
		return fmt.Errorf("goptim: %s: no parameters: %w", s.title(), ErrParam)
	}
	for i, p := range params {
		if p == nil {
			return fmt.Errorf("goptim: %s: parameter %d is nil: %w", s.title(), i, ErrParam)
		}
		if slices.Index(params, p) != i {
			return fmt.Errorf("goptim: %s: %s is given twice: %w", s.title(), p.describe(i), ErrParam)
		}
		if err := p.check(s.title(), i); err != nil {
			return err
		}
		for k, use := range s.layout(o).State {
			if use == engine.Column {
				b.states[i].columns[k] = slices.Repeat([]T{T(s.initial(o, k))}, len(p.Value))
			}
		}
	}
	return nil
}

// Check returns the error that Step would return for bad input.
func (b *sparse[T, O, S]) Check() error {
	err := b.usable()
	if err == nil {
		err = b.spec.checkOptions(b.o)
	}
	if err != nil {
		return err
	}
	for i, p := range b.params {
		if p.Grad != nil {
			err = errors.Join(err, b.checkScalars(i))
		}
		err = errors.Join(err, p.check(b.spec.title(), i))
		for _, c := range b.states[i].columns {
			if c != nil && len(c) != len(p.Value) {
				err = errors.Join(err, fmt.Errorf("goptim: %s: %s has %d elements, expected %d as at the first step: %w",
					b.spec.title(), p.describe(i), len(p.Value), len(c), ErrParam))
				break
			}
		}
	}
	return err
}

// checkScalars returns an error if the scalars of a parameter's next step cannot be computed.
func (b *sparse[T, O, S]) checkScalars(i int) error {
	b.log.begin()
	b.row.Types = engine.TypesOf(dtype[T](), engine.None)
	b.now = now{row: &b.row, i: i, log: &b.log, t: b.states[i].step + 1, pow: cpow.Pow}
	if b.spec.scalarsOf(b.o, &b.now); b.log.err != nil {
		return fmt.Errorf("goptim: %s: %w", b.spec.title(), b.log.err)
	}
	return nil
}

// Step updates every row that has a gradient. If the error wraps ErrOption or ErrParam, nothing has changed.
func (b *sparse[T, O, S]) Step() error {
	if err := b.Check(); err != nil {
		return err
	}
	pass := b.spec.take()
	defer b.spec.put(pass)
	for i, p := range b.params {
		if p.Grad == nil {
			continue
		}
		b.states[i].step++
		t := b.rowOf(i)
		err := b.spec.step(pass, b.o, &t, threadsOf(*b.workers), nil, cpow.Pow)
		runtime.KeepAlive(b) // the row contains addresses
		if err != nil {
			return err
		}
	}
	return nil
}

// rowOf returns the table row for a parameter's step. It contains addresses.
func (b *sparse[T, O, S]) rowOf(i int) sparseRow {
	p, s := b.params[i], &b.states[i]
	t := sparseRow{
		param: address(p.Value), rows: int64(len(p.Value) / p.Width), width: int64(p.Width), dtype: int64(dtype[T]()),
		indices: engine.Address(unsafe.Pointer(unsafe.SliceData(p.Indices))), values: address(p.Grad), n: int64(len(p.Indices)),
		step: s.step,
	}
	for k := range t.state {
		t.state[k] = address(s.columns[k])
	}
	return t
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

// A sparseRow is the step of one parameter in a table of the bindings: eleven 64-bit words. The addresses are of
// contiguous memory: the parameter and each state of rows times width elements, n row indices (int64), and n rows of
// gradient values. The caller guarantees that they are valid.
type sparseRow struct {
	param           uintptr
	state           [2]uintptr // in the order of the class; 0 if there is none
	rows, width     int64
	dtype           int64 // the elements' engine.DType
	indices, values uintptr
	order           uintptr // address of n positions (int64) that sort the indices; if 0, the gradients of a row are used in the given order
	n               int64
	step            float64 // the number of this step, from 1
}

func (t *sparseRow) check(l engine.Layout) error {
	if t.rows < 0 || t.width < 1 || t.n < 0 || t.rows > math.MaxInt64/8/t.width || t.n > math.MaxInt32 ||
		bits.Len64(uint64(t.rows))+bits.Len64(uint64(t.n)) > 64 {
		return fmt.Errorf("%d rows of %d elements, %d of them with a gradient: %w", t.rows, t.width, t.n, ErrParam)
	}
	if d := engine.DType(t.dtype); d != engine.Float32 && d != engine.Float64 {
		return fmt.Errorf("elements of %v, expected float32 or float64: %w", d, ErrParam)
	}
	if t.n == 0 || t.rows == 0 {
		return nil
	}
	least := min(t.param, t.indices, t.values)
	for k := range t.state {
		if l.State[k] == engine.Column {
			least = min(least, t.state[k])
		}
	}
	if least < 4096 {
		return fmt.Errorf("address %#x: %w", least, ErrParam)
	}
	return nil
}

// stepGroups steps the parameters of groups one after the other. Like torch's step, it does not check the options. On an
// error of the first parameter, nothing has changed.
func (s *sparseSpec[O, S]) stepGroups(c steps.Call) error {
	p := s.take()
	defer s.put(p)
	for g := c.Groups; g != nil; g = g.After() {
		s.decode(&p.options, g.Words())
		for i := range unsafe.Slice((*sparseRow)(engine.Pointer(g.Table)), g.Rows) {
			row := (*sparseRow)(engine.Pointer(g.Table + uintptr(i)*unsafe.Sizeof(sparseRow{})))
			if err := s.step(p, &p.options, row, c.Threads, c.Team, powOf(c)); err != nil {
				return err
			}
		}
	}
	return nil
}

// take returns a pass from the pool, and put returns it to the pool.
func (s *sparseSpec[O, S]) take() *sparsePass[O, S] {
	if p, _ := s.passes.Get().(*sparsePass[O, S]); p != nil {
		return p
	}
	return new(sparsePass[O, S])
}

func (s *sparseSpec[O, S]) put(p *sparsePass[O, S]) {
	p.table, p.row, p.now = sparseRow{}, [1]engine.Row{}, now{} // see stepGroups of spec
	s.passes.Put(p)
}

// step steps one parameter.
func (s *sparseSpec[O, S]) step(p *sparsePass[O, S], o *O, t *sparseRow, threads int, team engine.Team, pow func(x, y float64) float64) error {
	if err := t.check(s.layout(o)); err != nil {
		return fmt.Errorf("goptim: %s: %w", s.title(), err)
	}
	if err := p.begin(t); err != nil {
		return fmt.Errorf("goptim: %s: %w", s.title(), err)
	}
	p.log.begin()
	p.now = now{row: &p.row[0], log: &p.log, t: t.step, pow: pow}
	p.kernels, p.h, p.sums = s.arithmetic, s.scalarsOf(o, &p.now), s.sums
	p.negated = s.maximize.get(unsafe.Pointer(o), 0) != 0
	if p.log.err != nil {
		return fmt.Errorf("goptim: %s: %w", s.title(), p.log.err)
	}
	if err := engine.Run(p, p.row[:], threads, team); err != nil {
		return fmt.Errorf("goptim: %s: %w", s.title(), err)
	}
	return nil
}

// begin finds the rows that have a gradient.
func (p *sparsePass[O, S]) begin(t *sparseRow) error {
	p.table = *t
	if err := p.rows.find(t); err != nil {
		return err
	}
	// The engine splits the concatenated elements of the rows that have a gradient.
	p.row[0] = engine.Row{
		N: int64(p.rows.len()) * t.width, Types: engine.TypesOf(engine.DType(t.dtype), engine.None), Param: t.param, Grad: t.values,
		State: [engine.States]uintptr{t.state[0], t.state[1]},
	}
	return nil
}

// touched is the sorted list of the rows of a parameter that have a gradient.
type touched struct {
	entries []entry
	starts  []int32 // the start of each row in entries, and the end of the last row
	places  uint    // number of bits of an entry for the index in the gradient
	spare   []entry
}

// An entry is a row of the gradient: the index of the parameter's row, and in the lower bits the index in the gradient.
type entry uint64

func (r *touched) len() int { return max(len(r.starts)-1, 0) }

func (r *touched) index(e entry) int { return int(e >> r.places) }

func (r *touched) place(e entry) int { return int(e & (1<<r.places - 1)) }

// find sorts the rows of the gradient by the parameter's row and finds where each of these begins.
func (r *touched) find(t *sparseRow) error {
	n := int(t.n)
	r.places = uint(bits.Len(uint(n)))
	var err error
	if r.entries, err = heap.Grow(r.entries, n); err == nil {
		r.spare, err = heap.Grow(r.spare, n)
	}
	if err == nil {
		r.starts, err = heap.Grow(r.starts, n+1)
	}
	if err != nil {
		return err
	}
	r.starts = r.starts[:0]
	if n == 0 || t.rows == 0 {
		return nil
	}
	last, ordered := int64(0), true
	for i, index := range unsafe.Slice((*int64)(engine.Pointer(t.indices)), n) {
		if uint64(index) >= uint64(t.rows) {
			return fmt.Errorf("index %d in the gradient, expected one of %d rows: %w", index, t.rows, ErrParam)
		}
		ordered = ordered && index >= last
		last = index
		r.entries[i] = entry(index)<<r.places | entry(i)
	}
	if t.order != 0 {
		for i, place := range unsafe.Slice((*int64)(engine.Pointer(t.order)), n) {
			if uint64(place) >= uint64(n) || (i > 0 && r.index(r.entries[place]) < r.index(r.spare[i-1])) {
				return fmt.Errorf("place %d of the order is %d: %w", i, place, ErrParam)
			}
			r.spare[i] = r.entries[place]
		}
		r.entries, r.spare = r.spare, r.entries
	} else if !ordered {
		r.sort(int(t.rows))
	}
	for i, e := range r.entries {
		if i == 0 || r.index(e) != r.index(r.entries[i-1]) {
			r.starts = append(r.starts, int32(i))
		}
	}
	r.starts = append(r.starts, int32(n))
	return nil
}

// sort is a stable radix sort of the entries by row.
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

// A sparsePass is a pass over the rows that have a gradient.
type sparsePass[O, S any] struct {
	options O // options of one call
	table   sparseRow
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
func (p *sparsePass[O, S]) Update(part engine.Part) {
	lo, hi := part.Lo, part.Hi
	if engine.DType(p.table.dtype) == engine.Float64 {
		updateRows(p, p.kernels.f64, f64.Accumulate, lo, hi)
	} else {
		updateRows(p, p.kernels.f32, f32.Accumulate, lo, hi)
	}
}

// Rows are scattered in memory, and waiting for each would dominate the time. They are prefetched aheadLines cache lines of a
// tensor ahead, or aheadRows rows ahead if rows are long.
const aheadLines, aheadRows = 32, 4

// batch is the number of rows per call of a kernel.
const batch = 8

// A bench is the scratch buffer of a thread, for rows passed to a kernel. It is on the heap: see kernel.Apply.
type bench[T Float] struct {
	parts [batch]kernel.Part[T]
	adds  [batch]kernel.Part[T]
	sums  []T // a row per part whose gradients are summed
	asked [16]uintptr
}

var benches32, benches64 sync.Pool

func benches[T Float]() *sync.Pool {
	if dtype[T]() == engine.Float32 {
		return &benches32
	}
	return &benches64
}

func updateRows[O, S any, T Float](p *sparsePass[O, S], f kernel.RowsFunc[S, T], accumulate kernel.RowsFunc[kernel.None, T], lo, hi int) {
	t, r, width := &p.table, &p.rows, int(p.table.width)
	size := int(t.rows) * width
	param, values := elements[T](t.param, size), elements[T](t.values, int(t.n)*width)
	columns := append(make([]uintptr, 0, 1+engine.Columns), t.param)
	var states [engine.Columns][]T
	for k, a := range t.state {
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
	asked := int(r.starts[lo/width]) // number of entries whose gradient has been prefetched
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
			ask = append(ask, t.values+uintptr(r.place(r.entries[asked]))*rowBytes)
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
					for j := whole; j < n; j++ { // faster than a copy into a vector
						sum[j] += g[j]
					}
				}
				kernel.ApplyRows(accumulate, nil, sum, [engine.Columns][]T{}, b.adds[:k], whole)
			}
			if p.negated { // the kernel negates the sum, but a zero may have a different sign in the sum of negated gradients
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
