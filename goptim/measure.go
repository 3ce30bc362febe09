package goptim

import (
	"cmp"
	"encoding/json"
	"slices"
	"unsafe"

	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/reduce"
)

// A measure is a mean or a norm over the elements of a row on which the scalars of its step depend. So a row is processed twice: the
// first time, a kernel computes what is summed, in blocks in the L1 cache, and stores nothing; the second time, the kernel of the
// step has all scalars. A spec may have several measures, each with the scalars that the ones before it have set.
type measure[S any] struct {
	needed func(h *S) bool // whether a step with these scalars needs it
	// The kernels replace a copy of the parameter by what is summed. They only read the states. If there is none, the elements
	// of the parameter or the gradient are summed.
	f32   kernel.Func[S, float32]
	f64   kernel.Func[S, float64]
	param bool // the kernels read the parameter
	grad  bool // without a kernel: the elements are those of the gradient
	norm  bool // torch.linalg.vector_norm instead of the mean
	set   func(h *S, m *measured)
}

// measured is the result of a measure.
type measured struct {
	x      float64 // rounded to the type of the arithmetic
	n      float64 // the number of elements
	double bool    // the arithmetic is in float64
	pow    func(x, y float64) float64
}

// round returns x, the quotient, product or sum of two numbers of the type of the arithmetic, rounded to it.
func (m *measured) round(x float64) float64 {
	if m.double {
		return x
	}
	return float64(float32(x))
}

// caution is the measure of a cautious update: the share of its elements that have the sign of the gradient. The kernels compute the
// mask; with param, they read the parameter.
func caution[S any](of func(h *S) *kernel.Caution, f32 kernel.Func[S, float32], f64 kernel.Func[S, float64], param bool) measure[S] {
	return measure[S]{f32: f32, f64: f64, param: param,
		needed: func(h *S) bool { return of(h).Cautious != 0 },
		set: func(h *S, m *measured) {
			share := m.x
			if least := m.round(1e-3); share < least {
				share = least
			}
			of(h).Inverse = m.round(1 / share)
		},
	}
}

// clipping is the measure of an update with a bound: the norm of the quotients that the kernels compute.
func clipping[S any](of func(h *S) *kernel.Clipping, f32 kernel.Func[S, float32], f64 kernel.Func[S, float64]) measure[S] {
	return measure[S]{f32: f32, f64: f64, norm: true,
		needed: func(h *S) bool { return of(h).Threshold != 0 },
		set: func(h *S, m *measured) {
			rms := m.round(m.x / m.round(m.pow(m.n, 0.5)))
			of(h).Excess = m.round(rms / m.round(of(h).Threshold))
			if of(h).Excess < 1 { // a NaN stays
				of(h).Excess = 1
			}
		},
	}
}

// positive is a float64 that is null in JSON if it is 0.
type positive float64

func (x positive) MarshalJSON() ([]byte, error) {
	if x == 0 {
		return []byte("null"), nil
	}
	return number(x).MarshalJSON()
}

func (x *positive) UnmarshalJSON(data []byte) error {
	if string(data) == "null" {
		*x = 0
		return nil
	}
	return json.Unmarshal(data, (*number)(x))
}

// needs reports whether a step with these scalars has measures.
func (k *kernels[S]) needs(h *S) bool {
	for i := range k.measures {
		if k.measures[i].needed(h) {
			return true
		}
	}
	return false
}

// A desk has the memory of one thread that measures rows.
type desk[S any] struct {
	own     terms[S] // the terms of one row
	blocks  [6][measuredBytes/8 + 8]float64
	of      measured
	scaled  buffer
	operand kernel.Operands
}

const (
	// measuredBytes is the size of a block. Those of all tensors of a row are in the L1 cache.
	measuredBytes = 1 << 13
	// wholeRow is the largest number of elements of a row that is measured and updated at once: its tensors are in the L2 cache.
	wholeRow = 1 << 16
	// batchOfRows is the smallest number of elements of small rows that a thread takes at a time.
	batchOfRows = 1 << 14
	// measuredPart is the number of elements of a large row that a thread updates at a time.
	measuredPart = 1 << 17
	// minParallelMeasured is the smallest number of elements for two threads.
	minParallelMeasured = 1 << 17
)

// A task is a part of a step with measures: the rows from first up to last, or elements lo to hi of the large row first.
type task struct{ first, last, lo, hi int }

// measuring is what a pass needs for measures.
type measuring[S any] struct {
	on      bool // one of the rows has measures
	threads int  // with which torch computes a mean
	tasks   []task
	large   []int        // the indices of rows that are measured before they are updated
	own     []terms[S]   // their terms
	grads   []engine.Row // of one tensor, for the norm of all gradients
	norm    float64      // of all gradients
	of      engine.DType // the type of the norm
	ranges  engine.Ranges
	do      func(i int)
}

// process applies the pass to its rows.
func (p *pass[S]) process(threads int, team engine.Team) error {
	if p.kernels.estimate != nil {
		if on, err := p.kernels.estimate(p, threads, team); err != nil || !on {
			return err
		}
	}
	if p.kernels.bound != nil {
		if err := p.boundNorm(threads, team); err != nil {
			return err
		}
	}
	if !p.measuring.on {
		return engine.Run(p, p.rows, threads, team)
	}
	return p.runMeasured(threads, team)
}

// boundNorm computes the norm of all gradients, and divides them by what exceeds its bound.
func (p *pass[S]) boundNorm(threads int, team engine.Team) error {
	m, needed := &p.measuring, false
	for i := range p.distinct {
		most, _ := p.kernels.bound(&p.distinct[i].scalars)
		needed = needed || most != 0
	}
	if !needed {
		return nil
	}
	m.grads = m.grads[:0]
	for i := range p.rows {
		r := &p.rows[i]
		m.grads = append(m.grads, engine.Row{N: r.N, Param: r.Grad, Types: engine.Types{ParamType: r.GradType}})
	}
	norms := takeNorms(2, slices.Index(reduce.Orders[:], p.order), true, threads)
	defer norms.put()
	var err error
	m.norm, err = norms.total(m.grads, threads, team)
	m.of = norms.of
	p.divide(p.distinct)
	return err
}

// divide sets the divisors of the gradients.
func (p *pass[S]) divide(some []terms[S]) {
	for i := range some {
		if p.kernels.bound == nil {
			return
		}
		if most, divisor := p.kernels.bound(&some[i].scalars); most != 0 {
			of := measured{double: p.measuring.of == engine.Float64}
			if *divisor = of.round(p.measuring.norm / of.round(most)); *divisor < 1 { // a NaN stays
				*divisor = 1
			}
		}
	}
}

// runMeasured is process for rows with measures. Each row is measured by one thread. Large ones are then updated in parts.
func (p *pass[S]) runMeasured(threads int, team engine.Team) error {
	m, total := &p.measuring, 0
	if m.do == nil {
		m.do = p.doTask
	}
	for i := range p.rows {
		total += int(p.rows[i].N)
	}
	m.tasks, m.large, m.own = m.tasks[:0], m.large[:0], m.own[:0]
	if threads < 2 || total < minParallelMeasured || !p.apart() || !p.Prepare() {
		m.tasks = append(m.tasks, task{0, len(p.rows) - 1, 0, 0})
		return engine.Each(min(1, len(p.rows)), 1, nil, m.do)
	}
	for i := range p.rows {
		if p.rows[i].N > wholeRow {
			m.large = append(m.large, i)
		}
	}
	slices.SortFunc(m.large, func(i, j int) int { return cmp.Or(cmp.Compare(p.rows[j].N, p.rows[i].N), cmp.Compare(i, j)) })
	m.own = slices.Grow(m.own, len(m.large))[:len(m.large)]
	for k := range m.large {
		m.tasks = append(m.tasks, task{first: -1 - k})
	}
	sum, first := 0, 0
	for i := range p.rows {
		n := int(p.rows[i].N)
		if n > wholeRow {
			if i > first {
				m.tasks = append(m.tasks, task{first: first, last: i - 1})
			}
			sum, first = 0, i+1
			continue
		}
		if sum += n; sum >= batchOfRows || i == len(p.rows)-1 {
			m.tasks = append(m.tasks, task{first: first, last: i})
			sum, first = 0, i+1
		}
	}
	if err := engine.Each(len(m.tasks), threads, team, m.do); err != nil || len(m.large) == 0 {
		return err
	}
	m.tasks = m.tasks[:0]
	for k, i := range m.large {
		n := int(p.rows[i].N)
		for lo := 0; lo < n; lo += measuredPart {
			m.tasks = append(m.tasks, task{first: k, lo: lo, hi: min(lo+measuredPart, n)})
		}
	}
	return engine.Each(len(m.tasks), threads, team, m.do)
}

// apart reports whether rows can be processed in another order.
func (p *pass[S]) apart() bool {
	r := &p.measuring.ranges
	if len(p.rows) < 2 || r.Apart(p.rows) {
		return true
	}
	r.Reset()
	r.AddRows(p.rows)
	return !r.Shared()
}

// doTask does a task of runMeasured.
func (p *pass[S]) doTask(i int) {
	m := &p.measuring
	d, _ := p.kernels.desks.Get().(*desk[S])
	if d == nil {
		d = new(desk[S])
	}
	defer func() {
		d.operand = kernel.Operands{} // see spec.put
		p.kernels.desks.Put(d)
	}()
	switch t := &m.tasks[i]; {
	case t.first < 0:
		k := -1 - t.first
		r := &p.rows[m.large[k]]
		m.own[k] = p.distinct[p.at[m.large[k]]]
		p.measure(&m.own[k], r, d)
	case t.hi > 0:
		d.own = m.own[t.first]
		p.updateRow(&d.own, &p.rows[m.large[t.first]], t.lo, t.hi, &d.scaled)
	default:
		p.updateRows(t.first, t.last, d)
	}
}

// updateRows measures and updates rows, one after another.
func (p *pass[S]) updateRows(first, last int, d *desk[S]) {
	for row := first; row <= last; row++ {
		if p.turn.waiting && row >= p.turn.row && !p.advance() {
			return
		}
		r := &p.rows[row]
		d.own = p.distinct[p.at[row]]
		if next := row + ahead; next <= last {
			p.rows[next].Prefetch(&d.own.layout)
		}
		p.measure(&d.own, r, d)
		for n, lo := int(r.N), 0; lo < n; lo += measuredPart {
			p.updateRow(&d.own, r, lo, min(lo+measuredPart, n), &d.scaled)
		}
	}
}

// measure computes the measures of a row and sets its scalars.
func (p *pass[S]) measure(t *terms[S], r *engine.Row, d *desk[S]) {
	if r.N == 0 {
		return
	}
	for i := range p.kernels.measures {
		m := &p.kernels.measures[i]
		if !m.needed(&t.scalars) {
			continue
		}
		of := &d.of
		*of = measured{n: float64(r.N), double: r.Arithmetic() == engine.Float64, pow: p.context.pow}
		if of.double {
			of.x = measureRow(p, m, m.f64, around64, t, r, d)
		} else {
			of.x = measureRow(p, m, m.f32, around32, t, r, d)
		}
		m.set(&t.scalars, of)
	}
}

// measureRow computes one measure of a row.
func measureRow[S any, T kernel.Float](
	p *pass[S], m *measure[S], f kernel.Func[S, T], around aroundKernels[T], t *terms[S], r *engine.Row, d *desk[S],
) float64 {
	n, size := int(r.N), measuredBytes/int(unsafe.Sizeof(T(0)))
	if m.norm {
		norm := reduce.Norm[T]{Order: p.order}
		for lo := 0; lo < n; lo += size {
			norm.Next(summed(p, m, f, around, t, r, d, lo, min(lo+size, n)))
		}
		return float64(norm.End())
	}
	parts, length := reduce.Parts(n, p.measuring.threads)
	var few [1]T
	sums := few[:]
	if parts > 1 {
		sums = make([]T, parts)
	}
	for i := range sums {
		first, end := min(i*length, n), min((i+1)*length, n)
		total := reduce.TotalOf[T](end-first, p.order)
		for lo := first; lo < end; lo += size {
			total.Next(summed(p, m, f, around, t, r, d, lo, min(lo+size, end)))
		}
		sums[i] = total.End()
	}
	return float64(reduce.MeanOf(sums, n, p.measuring.threads, p.order))
}

// summed returns what a measure sums of elements lo to hi of a row, which are one block.
func summed[S any, T kernel.Float](
	p *pass[S], m *measure[S], f kernel.Func[S, T], around aroundKernels[T], t *terms[S], r *engine.Row, d *desk[S], lo, hi int,
) []T {
	memory := func(k int) []T { return unsafe.Slice((*T)(unsafe.Pointer(&d.blocks[k])), hi-lo) }
	var param, grad []T
	var states [engine.Columns][]T
	if t.mixed {
		param, grad, states = widenedBlock[S, T](p, m, t, r, d, lo, hi)
	} else {
		param, grad, states = engine.View[T](r, &t.layout, lo, hi)
		if p.around.scales && !t.scaled {
			scaled := unsafe.Slice((*T)(unsafe.Pointer(&d.scaled)), hi-lo)
			kernel.Apply(around.product, &p.around.factor, scaled, grad, [4][]T{})
			grad = scaled
		}
	}
	switch {
	case f != nil:
		copied := memory(0)
		if m.param && !t.mixed {
			copy(copied, param)
		}
		kernel.Apply(f, &t.scalars, copied, grad, states)
		return copied
	case m.grad:
		return grad
	}
	return param
}

// widenedBlock returns elements of a row whose tensors are narrow or differ in type, in float32, which is T.
func widenedBlock[S any, T kernel.Float](
	p *pass[S], m *measure[S], t *terms[S], r *engine.Row, d *desk[S], lo, hi int,
) (param, grad []T, states [engine.Columns][]T) {
	n := hi - lo
	block := func(k int) []float32 { return unsafe.Slice((*float32)(unsafe.Pointer(&d.blocks[k])), n) }
	as := func(x []float32) []T { return unsafe.Slice((*T)(unsafe.Pointer(unsafe.SliceData(x))), n) }
	o := &d.operand
	*o = engine.Operands(r, &t.layout, 0)
	if m.param || m.f32 == nil {
		o.ReadParam(block(0), lo)
	}
	from := lo
	if p.around.scales {
		product := engine.Operands(r, &t.layout, lo)
		product.Param = kernel.Operand{Address: unsafe.Pointer(&d.scaled), Format: product.Grad.Format}
		*o = kernel.Operands{Param: product.Param, Grad: product.Grad}
		if r.GradType.Narrow() {
			kernel.MultiplyNarrow(around32.product, &p.around.factor, *o, n)
		} else {
			kernel.ApplyMixed(around32.product, &p.around.factor, o, n)
		}
		*o = engine.Operands(r, &t.layout, 0)
		o.Grad, from = product.Param, 0
	}
	o.Grad.Read(block(1), from)
	for k := range o.State {
		if o.State[k].Address != nil {
			o.State[k].Read(block(2+k), lo)
			states[k] = as(block(2 + k))
		}
	}
	return as(block(0)), as(block(1)), states
}
