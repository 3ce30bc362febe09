package lbfgs

import (
	"runtime"
	"slices"
	"sync"
	"unsafe"

	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// vectors are the flat vectors of a Machine, and the passes over them. A pass divides the vectors into blocks of a fixed size
// and computes the sums of each block, on any number of threads; then it adds the sums of the blocks in order. So results do
// not depend on the number of threads. After a panic err is set, and further passes do nothing.
type vectors struct {
	m        *Machine
	threads  int
	team     engine.Team
	err      error
	segments []Segment
	ends     []int // ends[i] is the end of segment i in the flat vectors
	pairs    [][2]uintptr
	ros      []float64
	alphas   []float64

	// The current pass.
	pass    pass
	h       kernel.LBFGS
	columns [6]uintptr   // addresses of vectors, or gradients
	written int          // how many of the columns are written
	sums    [][4]float64 // of each block
	row     [1]engine.Row
}

// blockSize is the number of elements in a block. The rounding of sums depends on it.
const blockSize = 4096

// gradients is a placeholder among the addresses of columns for the gradients, which are in the segments.
const gradients uintptr = 1

type pass int

const (
	passFirst pass = iota
	passPair
	passDot
	passAxpy
	passAxpyScale
	passScale
	passMove          // moves the parameters along the direction
	passSaveStart     // copies the parameters to Start, and moves them
	passMoveFromStart // moves the parameters from Start
	passRestoreStart  // copies Start to the parameters
	passSaveGradient  // copies the gradient to Low
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

// vectorsOf returns the vectors of a machine, after the checks that are possible. The error is an InvalidError.
func vectorsOf(m *Machine, threads int, team engine.Team) (*vectors, error) {
	switch {
	case m.N < 1 || m.SegmentCount < 1 || m.PairCount < 0 || m.MaxIter < 1 || m.MaxEval < 1:
		return nil, invalid("%d elements in %d segments, %d pairs, %d iterations and %d evaluations",
			m.N, m.SegmentCount, m.PairCount, m.MaxIter, m.MaxEval)
	case m.Narrow != 0 && (m.Float64 != 0 || (m.Narrow != int(engine.BFloat16) && m.Narrow != int(engine.Float16))):
		return nil, invalid("parameters of %v, expected bfloat16 or float16", engine.DType(m.Narrow))
	case m.Phase < phaseBegin || m.Phase > phaseZoom:
		return nil, invalid("phase %d", m.Phase)
	}
	if !valid(m.Segments, m.Kept, m.LastDirection, m.Direction, m.Y, m.S) ||
		(m.StrongWolfe != 0 && !valid(m.Low, m.Start)) || (m.PairCount > 0 && !valid(m.Pairs, m.Ros, m.Alphas)) {
		return nil, invalid("an address is missing")
	}
	v := vectorsPool.Get().(*vectors)
	v.m, v.threads, v.team, v.err = m, threads, team, nil
	if threads <= 0 {
		v.threads = runtime.GOMAXPROCS(0)
	}
	v.segments = unsafe.Slice((*Segment)(engine.Pointer(m.Segments)), m.SegmentCount)
	v.pairs, v.ros, v.alphas = nil, nil, nil
	if m.PairCount > 0 {
		v.pairs = unsafe.Slice((*[2]uintptr)(engine.Pointer(m.Pairs)), m.PairCount)
		v.ros, v.alphas = elements[float64](m.Ros, m.PairCount), elements[float64](m.Alphas, m.PairCount)
	}
	for i, p := range v.pairs {
		if !valid(p[0], p[1]) {
			return nil, invalid("addresses %#x of pair %d", p, i)
		}
	}
	v.ends = v.ends[:0]
	end := 0
	for i, s := range v.segments {
		if s.N < 0 || s.N > m.N-end || (s.N > 0 && !(valid(s.Param) && (s.Grad == 0 || valid(s.Grad)))) {
			return nil, invalid("segment %d: %d elements at %#x and %#x", i, s.N, s.Param, s.Grad)
		}
		end += s.N
		v.ends = append(v.ends, end)
	}
	if end != m.N {
		return nil, invalid("%d elements in the segments, expected %d", end, m.N)
	}
	types := engine.TypesOf(engine.Float32, engine.None)
	if m.Float64 != 0 {
		types = engine.TypesOf(engine.Float64, engine.None)
	}
	v.row[0] = engine.Row{N: int64(m.N), Types: types, Param: m.Direction}
	v.sums = slices.Grow(v.sums[:0], (m.N+blockSize-1)/blockSize)[:(m.N+blockSize-1)/blockSize]
	return v, nil
}

// valid reports whether no address is in the first page of memory, which is never mapped.
func valid(addresses ...uintptr) bool { return slices.Min(addresses) >= 4096 }

// release returns v to its pool, without addresses: the garbage collector may crash on those of memory that is not Go's.
func (v *vectors) release() {
	v.m, v.team, v.segments, v.pairs, v.ros, v.alphas, v.columns, v.row = nil, nil, nil, nil, nil, nil, [6]uintptr{}, [1]engine.Row{}
	vectorsPool.Put(v)
}

func (v *vectors) y(i int) uintptr { return v.pairs[i][0] }
func (v *vectors) s(i int) uintptr { return v.pairs[i][1] }

// firstDirection sets d = -g. It returns Σ|g|, g·g and max|g|.
func (v *vectors) firstDirection() (norm1, square, maxGrad float64) {
	t := v.run(passFirst, kernel.LBFGS{}, 2, v.m.Direction, v.m.Kept, gradients)
	return t[0], t[1], t[kernel.Most]
}

// nextPair computes the next pair, of a step of length t, and sets d = -g. It returns y·s, y·y and s·g.
func (v *vectors) nextPair(t float64) (ys, yy, sg float64) {
	m := v.m
	s := v.run(passPair, kernel.LBFGS{A: t}, 4, m.Y, m.S, m.Direction, m.Kept, gradients, m.LastDirection)
	return s[0], s[1], s[2]
}

// dot returns x·y and max|x|.
func (v *vectors) dot(x, y uintptr) (dot, maxX float64) {
	t := v.run(passDot, kernel.LBFGS{}, 0, x, y)
	return t[0], t[kernel.Most]
}

// axpy sets d += a*x. It returns d·y and max|d|.
func (v *vectors) axpy(a float64, x, y uintptr) (dot, maxDirection float64) {
	t := v.run(passAxpy, kernel.LBFGS{A: a}, 1, v.m.Direction, x, y)
	return t[0], t[kernel.Most]
}

// axpyScale sets d = (d + a*y) * h. It returns d·y.
func (v *vectors) axpyScale(a float64, y uintptr, h float64) float64 {
	return v.run(passAxpyScale, kernel.LBFGS{A: a, B: h}, 1, v.m.Direction, y)[0]
}

// scale sets d *= h. It returns d·g and max|d|.
func (v *vectors) scale(h float64) (dot, maxDirection float64) {
	t := v.run(passScale, kernel.LBFGS{B: h}, 1, v.m.Direction, v.m.Kept)
	return t[0], t[kernel.Most]
}

func (v *vectors) move(t float64)             { v.run(passMove, kernel.LBFGS{A: t}, 1) }
func (v *vectors) saveStartAndMove(t float64) { v.run(passSaveStart, kernel.LBFGS{A: t}, 1) }
func (v *vectors) moveFromStart(t float64)    { v.run(passMoveFromStart, kernel.LBFGS{A: t}, 1) }
func (v *vectors) restoreStart()              { v.run(passRestoreStart, kernel.LBFGS{}, 0) }
func (v *vectors) saveGradient()              { v.run(passSaveGradient, kernel.LBFGS{}, 0) }

func (v *vectors) run(p pass, h kernel.LBFGS, written int, columns ...uintptr) (total [4]float64) {
	if v.err != nil {
		return total
	}
	v.pass, v.h, v.written, v.columns = p, h, written, [6]uintptr{}
	copy(v.columns[:], columns)
	for i, c := range v.columns {
		if c == gradients && v.m.source != inSegments {
			v.columns[i] = v.m.Kept
			if v.m.source == inLow {
				v.columns[i] = v.m.Low
			}
		}
	}
	if err := engine.Run(v, v.row[:], v.threads, v.team); err != nil {
		v.err = err
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

// Update implements engine.Pass: it processes the blocks that begin in a part.
func (v *vectors) Update(part engine.Part) {
	lo, hi := part.Lo, part.Hi
	if v.m.Float64 != 0 {
		updateBlocks(v, passes64[:], &blocks64, lo, hi)
	} else {
		updateBlocks(v, passes32[:], &blocks32, lo, hi)
	}
}

// A block is scratch memory for one block, on the heap as kernel.Scratch.
type block[T kernel.Float] struct {
	kernel.Scratch[T]
	gathered [blockSize]T
}

var (
	blocks32 = sync.Pool{New: func() any { return new(block[float32]) }}
	blocks64 = sync.Pool{New: func() any { return new(block[float64]) }}
)

func updateBlocks[T kernel.Float](v *vectors, passes []kernel.FlatFunc[T], pool *sync.Pool, lo, hi int) {
	b := pool.Get().(*block[T])
	defer pool.Put(b)
	for i := (lo + blockSize - 1) / blockSize; i*blockSize < hi; i++ {
		from, to := i*blockSize, min((i+1)*blockSize, v.m.N)
		switch v.pass {
		case passMove, passSaveStart, passMoveFromStart, passRestoreStart:
			moveBlock(v, b, passes[passMove], from, to)
		case passSaveGradient:
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
			v.sums[i] = kernel.ApplyFlat(passes[v.pass], v.h, c, v.written, &b.Scratch)
		}
	}
	kernel.Leave()
}

func elements[T kernel.Float](address uintptr, n int) []T {
	return unsafe.Slice((*T)(engine.Pointer(address)), n)
}

// part returns elements lo to hi of a vector.
func part[T kernel.Float](address uintptr, lo, hi int) []T { return elements[T](address, hi)[lo:] }

// gradient returns elements lo to hi of the gradient: a slice of one segment's, or a copy gathered from several segments.
func gradient[T kernel.Float](v *vectors, b *block[T], lo, hi int) []T {
	i, _ := slices.BinarySearch(v.ends, lo+1)
	if s := &v.segments[i]; hi <= v.ends[i] && s.Grad != 0 && v.m.Negate == 0 && v.m.Narrow == 0 {
		start := v.ends[i] - s.N
		return part[T](s.Grad, lo-start, hi-start)
	}
	gathered := b.gathered[:hi-lo]
	for at := lo; at < hi; i++ {
		s, to := &v.segments[i], min(hi, v.ends[i])
		start := v.ends[i] - s.N
		if at == to {
			continue
		}
		if s.Grad == 0 {
			clear(gathered[at-lo : to-lo])
		} else {
			read(v, gathered[at-lo:to-lo], s.Grad, at-start)
		}
		at = to
	}
	if v.m.Negate != 0 {
		for i := range gathered {
			gathered[i] = -gathered[i]
		}
	}
	return gathered
}

// read copies elements from lo on of a parameter or gradient.
func read[T kernel.Float](v *vectors, to []T, address uintptr, lo int) {
	if v.m.Narrow == 0 {
		copy(to, part[T](address, lo, lo+len(to)))
		return
	}
	o := engine.OperandOf(address, engine.DType(v.m.Narrow))
	o.Read(singles(to), lo)
}

// singles returns the elements as float32, which they are.
func singles[T kernel.Float](x []T) []float32 {
	return unsafe.Slice((*float32)(unsafe.Pointer(unsafe.SliceData(x))), len(x))
}

// moveBlock moves elements lo to hi of the parameters. Those of 16 bits are rounded.
func moveBlock[T kernel.Float](v *vectors, b *block[T], move kernel.FlatFunc[T], lo, hi int) {
	i, _ := slices.BinarySearch(v.ends, lo+1)
	for at := lo; at < hi; i++ {
		s, to := &v.segments[i], min(hi, v.ends[i])
		start := v.ends[i] - s.N
		if at == to {
			continue
		}
		var p []T
		if v.m.Narrow == 0 {
			p = part[T](s.Param, at-start, to-start)
		} else {
			p = b.gathered[:to-at]
			read(v, p, s.Param, at-start)
		}
		d, from := part[T](v.m.Direction, at, to), p
		if v.pass != passMove {
			from = part[T](v.m.Start, at, to)
		}
		if v.pass == passSaveStart {
			copy(from, p)
		}
		if v.pass == passRestoreStart {
			copy(p, from)
		} else {
			kernel.ApplyFlat(move, v.h, kernel.Columns[T]{p, from, d}, v.written, &b.Scratch)
		}
		if v.m.Narrow != 0 {
			o := engine.OperandOf(s.Param, engine.DType(v.m.Narrow))
			o.Write(singles(p), at-start)
		}
		at = to
	}
}
