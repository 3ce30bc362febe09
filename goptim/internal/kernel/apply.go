package kernel

import (
	"math"
	"sync"
	"unsafe"
)

// Float is the type of elements.
type Float interface{ ~float32 | ~float64 }

// A Func applies one step with the scalars h to buffers of the same length, a multiple of the lanes of a vector: the
// parameter, the gradient, which it only reads, and the states. All but the first may be nil.
type Func[S any, T Float] func(h *S, p, g []T, s [4][]T)

// widest is the number of float32 elements in a vector of 512 bits.
const widest = 16

// Lanes is the number of elements in a vector.
func Lanes[T Float]() int { return max(1, bits/8/int(unsafe.Sizeof(T(0)))) }

var bits = VectorBits()

// Apply applies a step to buffers of any length. The tail is processed in a copy that fills a vector.
func Apply[S any, T Float](f Func[S, T], h *S, p, g []T, s [4][]T) {
	rest := len(p) % Lanes[T]()
	whole := len(p) - rest
	if whole > 0 {
		f(h, p[:whole], g, s)
		Leave()
	}
	if rest > 0 {
		if g != nil {
			g = g[whole:]
		}
		applyRest(f, h, p[whole:], g, s, whole)
	}
}

func applyRest[S any, T Float](f Func[S, T], h *S, p, g []T, s [4][]T, whole int) {
	memory := padding.Get().(*[6][widest]float64)
	defer padding.Put(memory)
	padded := (*[6][widest]T)(unsafe.Pointer(memory))
	n := Lanes[T]()
	copy(padded[0][:n], p)
	copy(padded[1][:n], g) // not read by a kernel without a gradient
	var states [4][]T
	for i := range s {
		if s[i] != nil {
			states[i] = padded[2+i][:n]
			copy(states[i], s[i][whole:])
		}
	}
	f(h, padded[0][:n], padded[1][:n], states)
	Leave()
	copy(p, padded[0][:n])
	for i := range s {
		if s[i] != nil {
			copy(s[i][whole:], states[i])
		}
	}
}

// A ScanFunc applies an operation with the scalars h to a buffer, a multiple of the lanes of a vector. It raises each lane of
// most to the largest magnitude of its elements before the operation, or to NaN if one is NaN.
type ScanFunc[S any, T Float] func(h *S, p, most []T)

// Scan applies an operation to a buffer of any length, and returns the largest magnitude of the elements before it, or NaN if one
// is NaN. The tail is processed in a copy that fills a vector with zeros.
func Scan[S any, T Float](f ScanFunc[S, T], h *S, p []T) T {
	memory := padding.Get().(*[6][widest]float64)
	defer padding.Put(memory)
	padded := (*[2][widest]T)(unsafe.Pointer(memory))
	n := Lanes[T]()
	most := padded[1][:n]
	clear(most)
	rest := len(p) % n
	whole := len(p) - rest
	f(h, p[:whole], most)
	if rest > 0 {
		tail := padded[0][:n]
		Leave()
		clear(tail[copy(tail, p[whole:]):])
		f(h, tail, most)
		copy(p[whole:], tail)
	}
	Leave()
	return largest(most)
}

// largest returns the largest of some magnitudes, or NaN if one is NaN. The order of their bits is that of the numbers, with NaN as
// the largest.
func largest[T Float](lanes []T) T {
	const magnitude = math.MaxInt64
	most := uint64(0)
	for _, x := range lanes {
		most = max(most, math.Float64bits(float64(x))&magnitude)
	}
	return T(math.Float64frombits(most))
}

// padding has one vector per buffer. It is pooled because arguments of a call through a function value escape to the heap.
var padding = sync.Pool{New: func() any { return new([6][widest]float64) }}
