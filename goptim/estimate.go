package goptim

import (
	"sync"
	"unsafe"

	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
	"github.com/goptim/goptim/goptim/internal/kernel/reduce"
)

// This file has the first pass of Prodigy: it updates the state s, and computes the two sums on which the learning rate depends. The
// second one, the kernel of the step, updates the moments, since that reads and writes less memory, and the moments of 16 bits are
// rounded only once.

// estimating is what a pass needs for estimates.
type estimating struct {
	rows    []estimated
	pieces  []piece
	tasks   []task
	pass    *pass[kernel.Prodigy]
	threads int  // with which torch computes a sum
	moments bool // this pass updates the moments too, since rows share memory
	do      func(i int)
}

// estimated are the sums of one row.
type estimated struct {
	row           int
	first, last   int // its pieces
	product, size float64
}

// A piece is a part of a row for one thread, the elements lo to hi of its sliced states, with the sums of these.
type piece struct {
	row, lo, hi   int
	product, size float64
}

// An estimator has the memory of one thread.
type estimator struct {
	blocks [6][estimatedBytes/8 + 8]float64
	totals [2]reduce.Total[float64] // or of float32
	of     kernel.Operands
}

// estimatedBytes is the size of a block.
const estimatedBytes = 1 << 13

// prefetchedLines is the number of cache lines of the next block that are prefetched.
const prefetchedLines = 32

// measure sets the sums of all rows that have a gradient, after it has updated their states.
func (e *estimating) measure(p *pass[kernel.Prodigy], threads int, team engine.Team) error {
	e.pass, e.rows, e.pieces, e.tasks = p, e.rows[:0], e.pieces[:0], e.tasks[:0]
	e.threads = max(p.measuring.threads, 1)
	defer func() { e.pass = nil }()
	total := 0
	for i := range p.rows {
		t, n := &p.distinct[p.at[i]], int(p.rows[i].N)
		if t.scalars.Estimates == 0 || n == 0 {
			continue
		}
		total += n
		slices := t.layout.Slices(n)
		parts, size := reduce.Parts(slices, e.threads)
		first := len(e.pieces)
		for k := range parts {
			e.pieces = append(e.pieces, piece{row: i, lo: min(k*size, slices), hi: min((k+1)*size, slices)})
		}
		e.rows = append(e.rows, estimated{row: i, first: first, last: len(e.pieces)})
	}
	if e.do == nil {
		e.do = e.doTask
	}
	if e.moments = !e.apart(); threads < 2 || total < minParallelMeasured || e.moments {
		e.tasks = append(e.tasks, task{first: 0, last: len(e.pieces)})
	} else {
		for i, sum, first := 0, 0, 0; i < len(e.pieces); i++ {
			sum += e.pieces[i].hi - e.pieces[i].lo
			if sum >= batchOfRows || i == len(e.pieces)-1 {
				e.tasks = append(e.tasks, task{first: first, last: i + 1})
				sum, first = 0, i+1
			}
		}
	}
	if err := engine.Each(len(e.tasks), threads, team, e.do); err != nil {
		return err
	}
	for i := range e.rows {
		r := &e.rows[i]
		if p.rows[r.row].Arithmetic() == engine.Float64 {
			sumPieces[float64](e, r)
		} else {
			sumPieces[float32](e, r)
		}
	}
	return nil
}

// sumPieces adds the sums of a row's pieces as torch does.
func sumPieces[T kernel.Float](e *estimating, r *estimated) {
	pieces := e.pieces[r.first:r.last]
	if len(pieces) == 1 {
		r.product, r.size = pieces[0].product, pieces[0].size
		return
	}
	products, sizes := make([]T, len(pieces)), make([]T, len(pieces))
	for i := range pieces {
		products[i], sizes[i] = T(pieces[i].product), T(pieces[i].size)
	}
	r.product = float64(reduce.SumOf(products, e.threads, e.pass.order))
	r.size = float64(reduce.SumOf(sizes, e.threads, e.pass.order))
}

// apart reports whether no row writes memory of another one.
func (e *estimating) apart() bool {
	p := e.pass
	m := &p.measuring.ranges
	if len(p.rows) < 2 || m.Apart(p.rows) {
		return true
	}
	m.Reset()
	for i := range p.rows {
		r := &p.rows[i]
		n := int(r.N)
		slices := p.distinct[p.at[i]].layout.Slices(n)
		m.Write(r.Param, n*r.ParamType.Size())
		m.Read(r.Grad, n*r.GradType.Size())
		for k, size := range [...]int{n, n, prodigySum: slices} {
			if r.State[k] != 0 {
				m.Write(r.State[k], size*r.StateType[k].Size())
			}
		}
		if r.State[prodigyStart] != 0 {
			m.Read(r.State[prodigyStart], slices*r.StateType[prodigyStart].Size())
		}
	}
	return !m.Shared()
}

func (e *estimating) doTask(i int) {
	p := e.pass
	m, _ := estimators.Get().(*estimator)
	defer m.put()
	for k := e.tasks[i].first; k < e.tasks[i].last; k++ {
		at := &e.pieces[k]
		r, t := &p.rows[at.row], &p.distinct[p.at[at.row]]
		if next := k + ahead; next < e.tasks[i].last {
			of := &p.rows[e.pieces[next].row]
			kernel.Prefetch([]uintptr{of.Param, of.Grad, of.State[prodigySum], of.State[prodigyStart]}, of.FirstLines())
		}
		if r.Arithmetic() == engine.Float64 {
			estimatePiece(e, m, f64.ProdigyMoments, f64.ProdigyDistance, t, r, at)
		} else {
			estimatePiece(e, m, f32.ProdigyMoments, f32.ProdigyDistance, t, r, at)
		}
	}
}

// put makes the estimator available for later passes.
func (m *estimator) put() {
	m.of = kernel.Operands{} // see spec.put
	estimators.Put(m)
}

// estimatePiece updates the state s of a piece, and computes its sums, in blocks in the L1 cache.
func estimatePiece[T kernel.Float](
	e *estimating, m *estimator, moments, distance kernel.Func[kernel.Prodigy, T], t *terms[kernel.Prodigy], r *engine.Row, at *piece,
) {
	every, n, block := max(t.layout.Every, 1), int(r.N), estimatedBytes/int(unsafe.Sizeof(T(0)))
	totals := (*[2]reduce.Total[T])(unsafe.Pointer(&m.totals))
	for k := range totals {
		totals[k].Begin(at.hi-at.lo, e.pass.order)
	}
	if r.State[prodigyStart] == 0 {
		clear(blockOf[T](m, 5, min(block, at.hi-at.lo)))
	}
	for lo := at.lo; lo < at.hi; lo += block {
		hi := min(lo+block, at.hi)
		if e.moments {
			updateMoments(m, moments, t, r, lo*every, min(hi*every, n))
		}
		products, sizes := blockOf[T](m, 0, hi-lo), blockOf[T](m, 1, hi-lo)
		param, grad, sum, start := blockOf[T](m, 2, hi-lo), blockOf[T](m, 3, hi-lo), blockOf[T](m, 4, hi-lo), blockOf[T](m, 5, hi-lo)
		if t.mixed {
			readSlices(m, r, every, lo, as[float32](param), as[float32](grad), as[float32](sum), as[float32](start))
		} else {
			whole, grads, _ := engine.View[T](r, &t.layout, 0, n)
			if every == 1 {
				param, grad = whole[lo:hi], grads[lo:hi]
			} else {
				for i := range param {
					param[i], grad[i] = whole[(lo+i)*every], grads[(lo+i)*every]
				}
			}
			sum = engine.SliceOf[T](r, prodigySum, lo, hi)
			if r.State[prodigyStart] != 0 {
				start = engine.SliceOf[T](r, prodigyStart, lo, hi)
			}
		}
		kernel.Apply(distance, &t.scalars, products, grad, [4][]T{sum, start, sizes, param})
		if t.mixed {
			of := engine.OperandOf(r.State[prodigySum], r.StateType[prodigySum])
			of.Write(as[float32](sum), lo)
		}
		if !t.mixed && every == 1 && hi < at.hi {
			prefetchSlices(r, hi)
		}
		totals[0].Next(products)
		totals[1].Next(sizes)
	}
	at.product, at.size = float64(totals[0].End()), float64(totals[1].End())
}

// prefetchSlices prefetches what the estimate reads of a row first from element i on. Otherwise, the memory waits for the sums.
func prefetchSlices(r *engine.Row, i int) {
	offset := uintptr(i * r.ParamType.Size())
	of := [4]uintptr{r.Param + offset, r.Grad + offset, r.State[prodigySum] + offset, r.State[prodigyStart] + offset}
	kernel.Prefetch(of[:], prefetchedLines)
}

// blockOf returns the first n elements of a block of an estimator.
func blockOf[T kernel.Float](m *estimator, k, n int) []T {
	return unsafe.Slice((*T)(unsafe.Pointer(&m.blocks[k])), n)
}

// onlyMoments updates the moments of all rows.
func (e *estimating) onlyMoments(p *pass[kernel.Prodigy]) {
	m, _ := estimators.Get().(*estimator)
	defer m.put()
	for i := range e.rows {
		r := &p.rows[e.rows[i].row]
		t := &p.distinct[p.at[e.rows[i].row]]
		if r.Arithmetic() == engine.Float64 {
			updateMoments(m, f64.ProdigyMoments, t, r, 0, int(r.N))
		} else {
			updateMoments(m, f32.ProdigyMoments, t, r, 0, int(r.N))
		}
	}
}

// as returns numbers as those of the type that they have.
func as[To, From kernel.Float](x []From) []To {
	return unsafe.Slice((*To)(unsafe.Pointer(unsafe.SliceData(x))), len(x))
}

// updateMoments applies the kernel of the moments to elements lo to hi of a row, in blocks if it has 16 bits. Then T is float32.
func updateMoments[T kernel.Float](
	m *estimator, moments kernel.Func[kernel.Prodigy, T], t *terms[kernel.Prodigy], r *engine.Row, lo, hi int,
) {
	if !t.mixed {
		param, grad, states := engine.View[T](r, &t.layout, lo, hi)
		kernel.Apply(moments, &t.scalars, param, grad, states)
		return
	}
	for n := 0; lo < hi; lo += n {
		n = min(estimatedBytes/4, hi-lo)
		o := &m.of
		*o = engine.Operands(r, &t.layout, 0)
		o.ReadParam(blockOf[float32](m, 0, n), lo)
		o.Grad.Read(blockOf[float32](m, 1, n), lo)
		var states [4][]T
		for k := range o.State {
			if o.State[k].Address != nil {
				o.State[k].Read(blockOf[float32](m, 2+k, n), lo)
				states[k] = blockOf[T](m, 2+k, n)
			}
		}
		kernel.Apply(moments, &t.scalars, blockOf[T](m, 0, n), blockOf[T](m, 1, n), states)
		for k := range o.State {
			if o.State[k].Address != nil {
				o.State[k].Write(blockOf[float32](m, 2+k, n), lo)
			}
		}
	}
}

// readSlices reads what the estimate uses of a row of 16 bits: its elements from slice lo on. start stays as it is if there is no p0.
func readSlices(m *estimator, r *engine.Row, every, lo int, param, grad, sum, start []float32) {
	o := &m.of
	*o = kernel.Operands{
		Param: engine.OperandOf(r.Param, r.ParamType), Grad: engine.OperandOf(r.Grad, r.GradType),
	}
	if every == 1 {
		o.Param.Read(param, lo)
		o.Grad.Read(grad, lo)
	} else {
		for i := range param {
			o.Param.Read(param[i:i+1], (lo+i)*every)
			o.Grad.Read(grad[i:i+1], (lo+i)*every)
		}
	}
	s := engine.OperandOf(r.State[prodigySum], r.StateType[prodigySum])
	s.Read(sum, lo)
	if r.State[prodigyStart] == 0 {
		return
	}
	s = engine.OperandOf(r.State[prodigyStart], r.StateType[prodigyStart])
	s.Read(start, lo)
}

// estimators has estimators for later passes.
var estimators = sync.Pool{New: func() any { return new(estimator) }}
