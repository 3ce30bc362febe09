package kernel

import (
	"sync"
	"unsafe"
)

// A Part is a part of a row: its start in the buffers, and its gradient.
type Part[T Float] struct {
	At   int
	Grad []T
}

// A RowsFunc applies one step with the scalars h to parts of buffers, one after another: to n elements of each, a multiple of
// the lanes of a vector. A call per row would take as long as its arithmetic.
type RowsFunc[S any, T Float] func(h *S, p []T, s [4][]T, parts []Part[T], n int)

// ApplyRows applies a step to parts of any length. The tail is processed in a copy that fills a vector.
func ApplyRows[S any, T Float](f RowsFunc[S, T], h *S, p []T, s [4][]T, parts []Part[T], n int) {
	whole := n - n%Lanes[T]()
	if whole > 0 {
		f(h, p, s, parts, whole)
		Leave()
	}
	if whole < n {
		for i := range parts {
			applyPartsRest(f, h, p, s, &parts[i], whole, n)
		}
	}
}

func applyPartsRest[S any, T Float](f RowsFunc[S, T], h *S, p []T, s [4][]T, part *Part[T], whole, n int) {
	lo, hi := part.At+whole, part.At+n
	var rest [4][]T
	for i := range s {
		if s[i] != nil {
			rest[i] = s[i][lo:hi]
		}
	}
	memory := singles.Get().(*[1]Part[float64])
	defer singles.Put(memory)
	single := (*[1]Part[T])(unsafe.Pointer(memory)) // has the same memory layout
	one := func(h *S, p, g []T, s [4][]T) {
		single[0] = Part[T]{Grad: g}
		f(h, p, s, single[:], len(p))
	}
	applyRest(one, h, p[lo:hi], part.Grad[whole:n], rest, 0)
	single[0] = Part[T]{}
}

// singles are slices of one part, pooled like padding.
var singles = sync.Pool{New: func() any { return new([1]Part[float64]) }}
