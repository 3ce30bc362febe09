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
type SparseParam[T Element] struct {
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
	scalarsOf  func(o *O, c *stepContext) S
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
	c *class[O], r sparseRule, scalars func(o *O, c *stepContext) S, f32 kernel.RowsFunc[S, float32], f64 kernel.RowsFunc[S, float64],
) *sparseSpec[O, S] {
	s := &sparseSpec[O, S]{class: c, sparseRule: r, maximize: c.field("maximize"), scalarsOf: scalars, arithmetic: rowKernels[S]{f32, f64}}
	for _, key := range r.zeros {
		s.zero = append(s.zero, c.field(key))
	}
	k := s.kind()
	if k.Name != r.name {
		k.Name, k.Classes = r.name, map[string]map[string]float64{r.name: {}}
	}
	k.Sparse, k.Sums, k.Zero, k.Narrow, k.Stored, k.Step, k.Spec = true, r.sums, r.zeros, true, true, s.stepGroups, s
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
type sparse[T Element, O, S any] struct {
	Storage // used by the next Step; may be changed between steps

	self    *sparse[T, O, S]
	spec    *sparseSpec[O, S]
	o       *O
	workers *int
	params  []*SparseParam[T]
	states  []sparseState
	first   int        // the index of the first parameter, among those of Groups
	row     engine.Row // the row whose scalars are checked
	log     scalarLog
	context stepContext
}

type sparseState struct {
	step    float64
	columns [engine.Columns]stored
	extras
}

// length returns the number of elements of the states, or -1 if there are none.
func (s *sparseState) length() int {
	for k := range s.columns {
		if s.columns[k].made() {
			return s.columns[k].n
		}
	}
	switch {
	case s.master.made():
		return s.master.n
	case s.rest.made():
		return s.rest.n
	}
	return -1
}

// begin initializes an optimizer with a spec, options and parameters. It replaces zero options by their defaults.
func (b *sparse[T, O, S]) begin(s *sparseSpec[O, S], o *O, workers *int, params []*SparseParam[T]) error {
	s.setAllDefaults(o)
	*b = sparse[T, O, S]{
		self: b, spec: s, o: o, workers: workers, params: slices.Clone(params), states: make([]sparseState, len(params)),
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
				b.states[i].columns[k] = makeStored(dtype[T](), len(p.Value), s.initial(o, k))
			}
		}
	}
	return nil
}

// Check returns the error that Step would return for bad input.
func (b *sparse[T, O, S]) Check() error {
	err := b.usable()
	if err == nil {
		err = errors.Join(b.spec.checkOptions(b.o), b.Storage.check(b.spec.title()))
	}
	if err != nil {
		return err
	}
	for i, p := range b.params {
		if p.Grad != nil {
			err = errors.Join(err, b.checkScalars(i))
		}
		err = errors.Join(err, p.check(b.spec.title(), i))
		if n := b.states[i].length(); n >= 0 && n != len(p.Value) {
			err = errors.Join(err, fmt.Errorf("goptim: %s: %s has %d elements, expected %d as at the first step: %w",
				b.spec.title(), p.describe(i), len(p.Value), n, ErrParam))
		}
	}
	return err
}

// checkScalars returns an error if the scalars of a parameter's next step cannot be computed.
func (b *sparse[T, O, S]) checkScalars(i int) error {
	b.log.begin()
	b.row.Types = engine.TypesOf(dtype[T](), engine.None)
	b.context = stepContext{row: &b.row, i: i, log: &b.log, t: b.states[i].step + 1, pow: cpow.Pow}
	if b.spec.scalarsOf(b.o, &b.context); b.log.err != nil {
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
		b.store(i)
		b.states[i].step++
		t := b.rowOf(i)
		pass.seed = b.Seed
		err := b.spec.step(pass, b.o, &t, threadsOf(*b.workers), nil, cpow.Pow)
		runtime.KeepAlive(b) // the row contains addresses
		if err != nil {
			return err
		}
	}
	return nil
}

// store converts the states of a parameter to those that the Storage requires, and creates those that are missing.
func (b *sparse[T, O, S]) store(i int) {
	s, to := &b.states[i], b.stateType(dtype[T]())
	for k := range s.columns {
		switch c := &s.columns[k]; {
		case !c.made() || c.d == to:
		case s.step == 0: // not rounded twice
			*c = makeStored(to, c.n, b.spec.initial(b.o, k))
		default:
			*c = c.as(to)
		}
	}
	flag, extra := b.flags(dtype[T]())
	makeExtra(&s.extras, b.params[i].Value, flag, extra)
}

// startAt sets the index of the first parameter, on which random numbers depend.
func (b *sparse[T, O, S]) startAt(first int) { b.first = first }

// rowOf returns the table row for a parameter's step. It contains addresses.
func (b *sparse[T, O, S]) rowOf(i int) sparseRow {
	p, s := b.params[i], &b.states[i]
	t := sparseRow{
		param: address(p.Value), rows: int64(len(p.Value) / p.Width), width: int64(p.Width), dtype: int64(dtype[T]()),
		indices: engine.Address(unsafe.Pointer(unsafe.SliceData(p.Indices))), values: address(p.Grad), n: int64(len(p.Indices)),
		step: s.step, index: int64(b.first + i),
	}
	for k := range t.state {
		if c := &s.columns[k]; c.made() {
			t.state[k] = c.address()
			if c.d != dtype[T]() {
				t.stateType = int64(c.d)
			}
		}
	}
	flag, _ := b.flags(dtype[T]())
	t.flags = int64(flag)
	if c := s.extra(flag); c != nil {
		t.extra = c.address()
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

// A sparseRow is the step of one parameter in a table of the bindings: fifteen 64-bit words. The addresses are of
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
	extra           uintptr // address of the master copy or the compensation of the parameter; 0 if there is none
	index           int64   // of the parameter in the optimizer, for stochastic rounding
	stateType       int64   // the engine.DType of the states; 0 for that of the elements
	flags           int64   // the engine.Flags for how the parameter is stored
}

// mixed reports whether elements have 16 bits, or states have another type than elements.
func (t *sparseRow) mixed() bool { return t.narrow() || (t.stateType != 0 && t.stateType != t.dtype) }

// stateOperand returns the elements of a state.
func (t *sparseRow) stateOperand(address uintptr) kernel.Operand {
	if t.stateType != 0 {
		return engine.OperandOf(address, engine.DType(t.stateType))
	}
	return engine.OperandOf(address, engine.DType(t.dtype))
}

// operands returns the parameter, and what else is stored for it.
func (t *sparseRow) operands(seed uint64) kernel.Operands {
	r := engine.Row{Param: t.param, Types: engine.TypesOf(engine.DType(t.dtype), engine.None), Rows: uint32(t.index)}
	r.Flags, r.State[engine.MasterState] = engine.Flags(t.flags), t.extra
	o := engine.Stored(&r)
	o.Noise = r.Noise(seed, t.step)
	return o
}

// checkStored checks how the parameter and its states are stored.
func (t *sparseRow) checkStored() error {
	if d := engine.DType(t.stateType); d != engine.None && (t.dtype == int64(engine.Float64) || (d != engine.Float32 && d != engine.BFloat16)) {
		return fmt.Errorf("states of %v, elements of %v: %w", d, engine.DType(t.dtype), ErrParam)
	}
	switch flag := engine.Flags(t.flags); {
	case t.flags == 0:
	case !t.narrow() || (flag != engine.Master && flag != engine.Kahan && flag != engine.Stochastic):
		return fmt.Errorf("flags %#x, elements of %v: %w", t.flags, engine.DType(t.dtype), ErrParam)
	case flag != engine.Stochastic && t.n != 0 && t.rows != 0 && t.extra < 4096:
		return fmt.Errorf("address %#x: %w", t.extra, ErrParam)
	}
	return nil
}

// narrow reports whether elements have 16 bits.
func (t *sparseRow) narrow() bool { return engine.DType(t.dtype) >= engine.BFloat16 }

func (t *sparseRow) check(l engine.Layout) error {
	if t.rows < 0 || t.width < 1 || t.n < 0 || t.rows > math.MaxInt64/8/t.width || t.n > math.MaxInt32 ||
		bits.Len64(uint64(t.rows))+bits.Len64(uint64(t.n)) > 64 {
		return fmt.Errorf("%d rows of %d elements, %d of them with a gradient: %w", t.rows, t.width, t.n, ErrParam)
	}
	if d := engine.DType(t.dtype); d < engine.Float32 || d > engine.Float16 {
		return fmt.Errorf("elements of %v, expected float32, float64, bfloat16 or float16: %w", d, ErrParam)
	}
	if err := t.checkStored(); err != nil || t.n == 0 || t.rows == 0 {
		return err
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

// rowsOfGradient returns the indices of the parameter's rows that have a gradient.
func (t *sparseRow) rowsOfGradient() []int64 {
	if t.n == 0 || t.rows == 0 {
		return nil
	}
	return unsafe.Slice((*int64)(engine.Pointer(t.indices)), int(t.n))
}

func (t *sparseRow) outOfRange(index int64) error {
	return fmt.Errorf("index %d in the gradient, expected one of %d rows: %w", index, t.rows, ErrParam)
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
			p.seed = g.Seed
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
	p.table, p.row, p.context = sparseRow{}, [1]engine.Row{}, stepContext{} // see stepGroups of spec
	s.passes.Put(p)
}

// step steps one parameter.
func (s *sparseSpec[O, S]) step(p *sparsePass[O, S], o *O, t *sparseRow, threads int, team engine.Team, pow func(x, y float64) float64) error {
	if err := t.check(s.layout(o)); err != nil {
		return fmt.Errorf("goptim: %s: %w", s.title(), err)
	}
	// A row of 16 bits is rounded once, after all of its gradients.
	p.inOrder = !s.sums && t.order == 0 && t.n*t.width < minSorted && !t.mixed()
	if p.inOrder {
		threads = 1
	}
	if err := p.begin(t); err != nil {
		return fmt.Errorf("goptim: %s: %w", s.title(), err)
	}
	p.log.begin()
	p.context = stepContext{row: &p.row[0], log: &p.log, t: t.step, pow: pow}
	p.kernels, p.h, p.sums = s.arithmetic, s.scalarsOf(o, &p.context), s.sums
	p.negated = s.maximize.get(unsafe.Pointer(o), 0) != 0
	if p.log.err != nil {
		return fmt.Errorf("goptim: %s: %w", s.title(), p.log.err)
	}
	if err := engine.Run(p, p.row[:], threads, team); err != nil {
		return fmt.Errorf("goptim: %s: %w", s.title(), err)
	}
	return nil
}

// minSorted is the smallest number of elements of a gradient whose rows are sorted although they are not summed. With fewer,
// one thread steps them faster in their original order.
const minSorted = 1 << 18

// begin finds the rows that have a gradient.
func (p *sparsePass[O, S]) begin(t *sparseRow) error {
	p.table = *t
	n := t.n
	if p.inOrder {
		for _, index := range t.rowsOfGradient() {
			if uint64(index) >= uint64(t.rows) {
				return t.outOfRange(index)
			}
		}
	} else {
		if err := p.rows.find(t); err != nil {
			return err
		}
		n = int64(p.rows.len())
	}
	if t.rows == 0 {
		n = 0
	}
	// The engine splits the concatenated elements of the rows that have a gradient.
	p.row[0] = engine.Row{
		N: n * t.width, Types: engine.TypesOf(engine.DType(t.dtype), engine.None), Param: t.param, Grad: t.values,
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
	for i, index := range t.rowsOfGradient() {
		if uint64(index) >= uint64(t.rows) {
			return t.outOfRange(index)
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
	seed    uint64 // of stochastic rounding
	kernels rowKernels[S]
	h       S
	sums    bool
	negated bool
	inOrder bool // the rows of the gradient are stepped one by one in their order, by one thread
	rows    touched
	row     [1]engine.Row
	log     scalarLog
	context stepContext
}

// Update implements engine.Pass.
func (p *sparsePass[O, S]) Update(part engine.Part) {
	lo, hi := part.Lo, part.Hi
	if p.table.mixed() {
		updateRowsMixed(p, lo, hi)
		return
	}
	if p.inOrder {
		if engine.DType(p.table.dtype) == engine.Float64 {
			updateInOrder(p, p.kernels.f64)
		} else {
			updateInOrder(p, p.kernels.f32)
		}
		return
	}
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

// near is the size in bytes of a tensor whose rows are not prefetched: it is probably in the L2 cache.
const near = 1 << 19

// A rowScratch is the scratch buffer of a thread, for rows passed to a kernel. It is on the heap: see kernel.Apply.
type rowScratch[T Float] struct {
	parts     [batch]kernel.Part[T]
	adds      [batch]kernel.Part[T]
	sums      []T // a row per part whose gradients are summed
	addresses [16]uintptr
}

var rowScratches32, rowScratches64 sync.Pool

func rowScratches[T Float]() *sync.Pool {
	if dtype[T]() == engine.Float32 {
		return &rowScratches32
	}
	return &rowScratches64
}

// updateInOrder applies the step to all rows of the gradient in their order.
func updateInOrder[O, S any, T Float](p *sparsePass[O, S], f kernel.RowsFunc[S, T]) {
	t, width := &p.table, int(p.table.width)
	size := int(t.rows) * width
	param, values, indices := elements[T](t.param, size), elements[T](t.values, int(t.n)*width), t.rowsOfGradient()
	b, _ := rowScratches[T]().Get().(*rowScratch[T])
	if b == nil {
		b = new(rowScratch[T])
	}
	defer func() {
		clear(b.parts[:])
		rowScratches[T]().Put(b)
	}()
	rowBytes := uintptr(width) * unsafe.Sizeof(T(0))
	lines := min(int(rowBytes+63)/64, 16)
	far := uintptr(size)*unsafe.Sizeof(T(0)) > near
	prefetch := func(next []int64) {
		addresses := b.addresses[:0]
		for _, index := range next[:min(batch, len(next))] {
			addresses = append(addresses, t.param+uintptr(index)*rowBytes)
		}
		kernel.Prefetch(addresses, lines)
	}
	if far {
		prefetch(indices)
	}
	for len(indices) > 0 {
		n := min(batch, len(indices))
		if far {
			prefetch(indices[n:])
		}
		for i, index := range indices[:n] {
			b.parts[i] = kernel.Part[T]{At: int(index) * width, Grad: values[i*width : (i+1)*width]}
		}
		kernel.ApplyRows(f, &p.h, param, [engine.Columns][]T{}, b.parts[:n], width)
		indices, values = indices[n:], values[n*width:]
	}
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
	b, _ := rowScratches[T]().Get().(*rowScratch[T])
	if b == nil {
		b = new(rowScratch[T])
	}
	defer func() {
		clear(b.parts[:])
		clear(b.adds[:])
		rowScratches[T]().Put(b)
	}()

	rowBytes := uintptr(width) * unsafe.Sizeof(T(0))
	lines := min(int(rowBytes+63)/64, 16)
	ahead := max(aheadRows, aheadLines/lines)
	prefetched := int(r.starts[lo/width]) // number of entries whose gradient has been prefetched
	filled, length := 0, 0                // parts, and the length of each
	flush := func() {
		kernel.ApplyRows(f, &p.h, param, states, b.parts[:filled], length)
		filled = 0
	}
	for lo < hi {
		row, first := lo/width, lo%width
		n := min(width-first, hi-lo)
		whole := n - n%kernel.Lanes[T]()
		start, end := int(r.starts[row]), int(r.starts[row+1])
		addresses := b.addresses[:0]
		if next := row + ahead; next < r.len() {
			at := uintptr(r.index(r.entries[r.starts[next]])) * rowBytes
			for _, a := range columns {
				addresses = append(addresses, a+at)
			}
		}
		for ; prefetched < min(end+ahead, len(r.entries)); prefetched++ {
			if len(addresses) == cap(addresses) {
				kernel.Prefetch(addresses, lines)
				addresses = addresses[:0]
			}
			addresses = append(addresses, t.values+uintptr(r.place(r.entries[prefetched]))*rowBytes)
		}
		kernel.Prefetch(addresses, lines)

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

// A mixedScratch is the scratch buffer of a thread for rows of 16 bits, in float32.
type mixedScratch struct {
	rows      [1 + engine.Columns][]float32 // of the parameter and of the states
	grads     []float32                     // a row per part
	at        []int                         // the element of the parameter at which each of the rows begins
	parts     [batch]kernel.Part[float32]
	add       [1]kernel.Part[float32]
	addresses [16]uintptr
}

var mixedScratches = sync.Pool{New: func() any { return new(mixedScratch) }}

// widenedRow is the number of elements of a row that are widened at a time.
const widenedRow = 1 << 10

// updateRowsMixed is updateRows for elements or states of 16 bits. A few rows are widened, stepped with all of their gradients in float32,
// and rounded once.
func updateRowsMixed[O, S any](p *sparsePass[O, S], lo, hi int) {
	t, r, width, d := &p.table, &p.rows, int(p.table.width), engine.DType(p.table.dtype)
	values := engine.OperandOf(t.values, d)
	stored := t.operands(p.seed)
	columns := append(make([]kernel.Operand, 0, 1+engine.Columns), stored.Param) // and the states
	addresses := append(make([]uintptr, 0, 1+engine.Columns), t.param)
	for _, a := range t.state {
		if a != 0 {
			columns, addresses = append(columns, t.stateOperand(a)), append(addresses, a)
		}
	}
	b := mixedScratches.Get().(*mixedScratch)
	defer mixedScratches.Put(b)
	b.at = b.at[:0]
	rowBytes := uintptr(width * d.Size())
	lines := min(int(rowBytes+63)/64, 16)
	ahead := max(aheadRows, aheadLines/lines)
	filled, length := 0, 0 // parts, and the length of each
	var states [engine.Columns][]float32
	step := func() {
		kernel.ApplyRows(p.kernels.f32, &p.h, b.rows[0], states, b.parts[:filled], length)
		filled = 0
	}
	store := func() {
		step()
		for i, at := range b.at {
			stored.WriteParam(b.rows[0][i*length:][:length], at)
			for k := 1; k < len(columns); k++ {
				columns[k].Write(b.rows[k][i*length:][:length], at)
			}
		}
		b.at = b.at[:0]
	}
	for lo < hi {
		row, first := lo/width, lo%width
		n := min(width-first, hi-lo, widenedRow)
		if n != length || len(b.at) == batch {
			store()
			length = n
			for k := range columns {
				heap.Grown(&b.rows[k], batch*n)
				if k > 0 {
					states[k-1] = b.rows[k]
				}
			}
			heap.Grown(&b.grads, (batch+1)*n)
		}
		if next := row + ahead; next < r.len() && first == 0 {
			e := r.entries[r.starts[next]]
			to := append(b.addresses[:0], t.values+uintptr(r.place(e))*rowBytes)
			for _, a := range addresses {
				to = append(to, a+uintptr(r.index(e))*rowBytes)
			}
			kernel.Prefetch(to, lines)
		}
		start, end := int(r.starts[row]), int(r.starts[row+1])
		at, slot := r.index(r.entries[start])*width+first, len(b.at)*n
		stored.ReadParam(b.rows[0][slot:][:n], at)
		for k := 1; k < len(columns); k++ {
			columns[k].Read(b.rows[k][slot:][:n], at)
		}
		b.at = append(b.at, at)
		for i := start; i < end; {
			if filled == batch {
				step()
			}
			g := b.grads[filled*n:][:n]
			values.Read(g, r.place(r.entries[i])*width+first)
			if i++; p.sums && i < end {
				p.addMixed(b, g, &values, r.entries[start:end], first)
				i = end
			}
			b.parts[filled] = kernel.Part[float32]{At: slot, Grad: g}
			filled++
		}
		lo += n
	}
	store()
}

// addMixed adds the gradients of all entries but the first to sum, which is that of the first one.
func (p *sparsePass[O, S]) addMixed(b *mixedScratch, sum []float32, values *kernel.Operand, entries []entry, first int) {
	g, width := b.grads[batch*len(sum):][:len(sum)], int(p.table.width)
	for _, e := range entries[1:] {
		values.Read(g, p.rows.place(e)*width+first)
		b.add[0] = kernel.Part[float32]{Grad: g}
		kernel.ApplyRows(f32.Accumulate, nil, sum, [engine.Columns][]float32{}, b.add[:], len(sum))
	}
	if !p.negated {
		return
	}
	for j, x := range sum { // as in updateRows
		if x == 0 {
			for i, e := range entries {
				values.Read(g[:1], p.rows.place(e)*width+first+j)
				if i == 0 {
					x = -g[0]
				} else {
					x -= g[0]
				}
			}
			sum[j] = -x
		}
	}
}

func elements[T Float](address uintptr, n int) []T {
	return unsafe.Slice((*T)(engine.Pointer(address)), n)
}
