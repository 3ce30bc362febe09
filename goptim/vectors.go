package goptim

import (
	"fmt"
	"runtime"
	"slices"
	"sync"
	"unsafe"

	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// vectors are the flat vectors of an LBFGSMachine, and the passes over them. A pass works on blocks, on some threads, and
// adds up what it sums in each block; the blocks' sums are added in order at its end. After a panic err is set, and
// further passes do nothing.
type vectors struct {
	m        *LBFGSMachine
	threads  int
	team     func(threads int, work func(thread int))
	err      error
	segments []lbfgsSegment
	ends     []int // ends[i] is where segment i ends among all elements
	pairs    [][2]uintptr
	ros      []float64
	alphas   []float64

	kind    lbfgsPass
	h       kernel.LBFGS
	columns [6]uintptr
	written int
	sums    [][4]float64 // of every block
	row     [1]engine.Row
}

// A lbfgsSegment is where one parameter lies; grad is 0 if its gradient is zeros.
type lbfgsSegment struct {
	n           int
	param, grad uintptr
}

// blockSize is the number of elements of which sums are added alone. The bits of the sums depend on it.
const blockSize = 4096

// gradients stands among the addresses of columns for the gradients of the segments, which are no column.
const gradients uintptr = 1

// A lbfgsPass is one of the passes.
type lbfgsPass int

const (
	passFirst lbfgsPass = iota
	passPair
	passDot
	passAxpy
	passTurn
	passScale
	passMove          // the parameters move along the direction
	passBegin         // they do, and where they were is kept
	passMoveFromStart // they move from where they were then
	passRestore       // they go back there
	passSave          // the gradient is kept
)

var (
	passes32 = [...]kernel.FlatFunc[float32]{
		f32.LBFGSFirst, f32.LBFGSPair, f32.LBFGSDot, f32.LBFGSAxpy, f32.LBFGSTurn, f32.LBFGSScale, f32.LBFGSMove,
	}
	passes64 = [...]kernel.FlatFunc[float64]{
		f64.LBFGSFirst, f64.LBFGSPair, f64.LBFGSDot, f64.LBFGSAxpy, f64.LBFGSTurn, f64.LBFGSScale, f64.LBFGSMove,
	}
)

var vectorsPool = sync.Pool{New: func() any { return new(vectors) }}

// vectorsOf views a machine's memory, and checks what can be checked of it.
func vectorsOf(m *LBFGSMachine, threads int, team func(threads int, work func(thread int))) (*vectors, error) {
	refuse := func(format string, a ...any) error {
		return fmt.Errorf("goptim: LBFGS: %s: %w", fmt.Sprintf(format, a...), ErrParam)
	}
	switch {
	case m.N < 1 || m.SegmentCount < 1 || m.PairCount < 0 || m.MaxIter < 1 || m.MaxEval < 1:
		return nil, refuse("%d elements in %d segments, %d pairs, %d iterations and %d evaluations",
			m.N, m.SegmentCount, m.PairCount, m.MaxIter, m.MaxEval)
	case m.Phase < atBegin || m.Phase > atZooming:
		return nil, refuse("phase %d", m.Phase)
	}
	if !mapped(m.Segments, m.Kept, m.LastDirection, m.Direction, m.Y, m.S) ||
		(m.StrongWolfe != 0 && !mapped(m.Low, m.Start)) || (m.PairCount > 0 && !mapped(m.Pairs, m.Ros, m.Alphas)) {
		return nil, refuse("an address is missing")
	}
	v := vectorsPool.Get().(*vectors)
	v.m, v.threads, v.team, v.err = m, threads, team, nil
	if threads <= 0 {
		v.threads = runtime.GOMAXPROCS(0)
	}
	v.segments = unsafe.Slice((*lbfgsSegment)(engine.Pointer(m.Segments)), m.SegmentCount)
	v.pairs, v.ros, v.alphas = nil, nil, nil
	if m.PairCount > 0 {
		v.pairs = unsafe.Slice((*[2]uintptr)(engine.Pointer(m.Pairs)), m.PairCount)
		v.ros, v.alphas = elements[float64](m.Ros, m.PairCount), elements[float64](m.Alphas, m.PairCount)
	}
	for i, p := range v.pairs {
		if !mapped(p[0], p[1]) {
			return nil, refuse("addresses %#x of pair %d", p, i)
		}
	}
	v.ends = v.ends[:0]
	end := 0
	for i, s := range v.segments {
		if s.n < 0 || s.n > m.N-end || (s.n > 0 && !(mapped(s.param) && (s.grad == 0 || mapped(s.grad)))) {
			return nil, refuse("segment %d: %d elements at %#x and %#x", i, s.n, s.param, s.grad)
		}
		end += s.n
		v.ends = append(v.ends, end)
	}
	if end != m.N {
		return nil, refuse("%d elements in the segments, expected %d", end, m.N)
	}
	kind := engine.KindOf(engine.Float32, engine.None)
	if m.Float64 != 0 {
		kind = engine.KindOf(engine.Float64, engine.None)
	}
	v.row[0] = engine.Row{N: int64(m.N), Kind: kind, Param: m.Direction}
	v.sums = slices.Grow(v.sums[:0], (m.N+blockSize-1)/blockSize)[:(m.N+blockSize-1)/blockSize]
	return v, nil
}

// mapped refuses addresses in the first page, which no memory has.
func mapped(addresses ...uintptr) bool { return slices.Min(addresses) >= 4096 }

// release gives v back, without the addresses of memory that is the machine's.
func (v *vectors) release() {
	v.m, v.team, v.segments, v.pairs, v.ros, v.alphas, v.columns, v.row = nil, nil, nil, nil, nil, nil, [6]uintptr{}, [1]engine.Row{}
	vectorsPool.Put(v)
}

func (v *vectors) y(i int) uintptr { return v.pairs[i][0] }
func (v *vectors) s(i int) uintptr { return v.pairs[i][1] }

// first makes the first direction, d = -g. It gives the sums of |g| and of g·g, and the largest |g|.
func (v *vectors) first() (norm1, square, most float64) {
	t := v.run(passFirst, kernel.LBFGS{}, 2, v.m.Direction, v.m.Kept, gradients)
	return t[0], t[1], t[kernel.Most]
}

// pair makes the next pair from a step of length t, and d = -g. It gives y·s, y·y and s·g.
func (v *vectors) pair(t float64) (ys, yy, sg float64) {
	m := v.m
	s := v.run(passPair, kernel.LBFGS{A: t}, 4, m.Y, m.S, m.Direction, m.Kept, gradients, m.LastDirection)
	return s[0], s[1], s[2]
}

// dot gives x·y and the largest |x|.
func (v *vectors) dot(x, y uintptr) (dot, most float64) {
	t := v.run(passDot, kernel.LBFGS{}, 0, x, y)
	return t[0], t[kernel.Most]
}

// axpy is d += a*x. It gives d·y and the largest |d|.
func (v *vectors) axpy(a float64, x, y uintptr) (dot, most float64) {
	t := v.run(passAxpy, kernel.LBFGS{A: a}, 1, v.m.Direction, x, y)
	return t[0], t[kernel.Most]
}

// turn is d = (d + a*y) * h. It gives d·y.
func (v *vectors) turn(a float64, y uintptr, h float64) float64 {
	return v.run(passTurn, kernel.LBFGS{A: a, B: h}, 1, v.m.Direction, y)[0]
}

// scale is d *= h. It gives d·g and the largest |d|.
func (v *vectors) scale(h float64) (dot, most float64) {
	t := v.run(passScale, kernel.LBFGS{B: h}, 1, v.m.Direction, v.m.Kept)
	return t[0], t[kernel.Most]
}

func (v *vectors) move(t float64)          { v.run(passMove, kernel.LBFGS{A: t}, 1) }
func (v *vectors) begin(t float64)         { v.run(passBegin, kernel.LBFGS{A: t}, 1) }
func (v *vectors) moveFromStart(t float64) { v.run(passMoveFromStart, kernel.LBFGS{A: t}, 1) }
func (v *vectors) restore()                { v.run(passRestore, kernel.LBFGS{}, 0) }
func (v *vectors) save()                   { v.run(passSave, kernel.LBFGS{}, 0) }

func (v *vectors) run(kind lbfgsPass, h kernel.LBFGS, written int, columns ...uintptr) (total [4]float64) {
	if v.err != nil {
		return total
	}
	v.kind, v.h, v.written, v.columns = kind, h, written, [6]uintptr{}
	copy(v.columns[:], columns)
	for i, c := range v.columns {
		if c == gradients && v.m.source != fromSegments {
			v.columns[i] = v.m.Kept
			if v.m.source == fromLow {
				v.columns[i] = v.m.Low
			}
		}
	}
	if err := engine.Run(v, v.row[:], v.threads, v.team); err != nil {
		v.err = fmt.Errorf("goptim: LBFGS: %w", err)
		return total
	}
	for _, s := range v.sums {
		for i := range kernel.Most {
			total[i] += s[i]
		}
		total[kernel.Most] = kernel.Maximum(total[kernel.Most], s[kernel.Most])
	}
	return total
}

// Update implements engine.Pass: it works on the blocks that begin in the part.
func (v *vectors) Update(part engine.Part) {
	lo, hi := part.Lo, part.Hi
	if v.m.Float64 != 0 {
		updateBlocks(v, passes64[:], &blocks64, lo, hi)
	} else {
		updateBlocks(v, passes32[:], &blocks32, lo, hi)
	}
}

// A lbfgsBlock is what the work on a block needs, not on the stack: see kernel.Scratch.
type lbfgsBlock[T Float] struct {
	kernel.Scratch[T]
	gathered [blockSize]T
}

var (
	blocks32 = sync.Pool{New: func() any { return new(lbfgsBlock[float32]) }}
	blocks64 = sync.Pool{New: func() any { return new(lbfgsBlock[float64]) }}
)

func updateBlocks[T Float](v *vectors, passes []kernel.FlatFunc[T], pool *sync.Pool, lo, hi int) {
	b := pool.Get().(*lbfgsBlock[T])
	defer pool.Put(b)
	for i := (lo + blockSize - 1) / blockSize; i*blockSize < hi; i++ {
		from, to := i*blockSize, min((i+1)*blockSize, v.m.N)
		switch v.kind {
		case passMove, passBegin, passMoveFromStart, passRestore:
			moveBlock(v, b, passes[passMove], from, to)
		case passSave:
			copy(part[T](v.m.Low, from, to), gradient(v, b, from, to))
		default:
			var c kernel.Columns[T]
			for k, a := range v.columns {
				switch a {
				case 0:
				case gradients:
					c[k] = gradient(v, b, from, to)
				default:
					c[k] = part[T](a, from, to)
				}
			}
			v.sums[i] = kernel.ApplyFlat(passes[v.kind], v.h, c, v.written, &b.Scratch)
		}
	}
	kernel.Leave()
}

// part is elements lo to hi of a vector.
func part[T Float](address uintptr, lo, hi int) []T { return elements[T](address, hi)[lo:] }

// gradient is elements lo to hi of the gradient: where they are, or gathered from several segments.
func gradient[T Float](v *vectors, b *lbfgsBlock[T], lo, hi int) []T {
	i, _ := slices.BinarySearch(v.ends, lo+1)
	if s := &v.segments[i]; hi <= v.ends[i] && s.grad != 0 && v.m.Negate == 0 {
		start := v.ends[i] - s.n
		return part[T](s.grad, lo-start, hi-start)
	}
	whole := b.gathered[:hi-lo]
	for at := lo; at < hi; i++ {
		s, to := &v.segments[i], min(hi, v.ends[i])
		start := v.ends[i] - s.n
		if at == to {
			continue
		}
		if s.grad == 0 {
			clear(whole[at-lo : to-lo])
		} else {
			copy(whole[at-lo:], part[T](s.grad, at-start, to-start))
		}
		at = to
	}
	if v.m.Negate != 0 {
		for i := range whole {
			whole[i] = -whole[i]
		}
	}
	return whole
}

// moveBlock moves elements lo to hi of the parameters.
func moveBlock[T Float](v *vectors, b *lbfgsBlock[T], move kernel.FlatFunc[T], lo, hi int) {
	i, _ := slices.BinarySearch(v.ends, lo+1)
	for at := lo; at < hi; i++ {
		s, to := &v.segments[i], min(hi, v.ends[i])
		start := v.ends[i] - s.n
		if at == to {
			continue
		}
		p := part[T](s.param, at-start, to-start)
		d, from := part[T](v.m.Direction, at, to), p
		if v.kind != passMove {
			from = part[T](v.m.Start, at, to)
		}
		if v.kind == passBegin {
			copy(from, p)
		}
		if v.kind == passRestore {
			copy(p, from)
		} else {
			kernel.ApplyFlat(move, v.h, kernel.Columns[T]{p, from, d}, v.written, &b.Scratch)
		}
		at = to
	}
}
