package kernel

import (
	"math"
	"unsafe"
)

// LBFGS holds the scalars of a pass of L-BFGS.
type LBFGS struct{ A, B float64 }

// SumLanes is the largest number of lanes of a sum, that of float32.
const SumLanes = 32

// Most is the index of the largest absolute value in Sums.
const Most = 3

type (
	// Columns are parts of flat vectors of the same length. Those that a pass writes come first.
	Columns[T Float] [6][]T
	// Sums are the lanes of a pass's sums, and at index Most of the largest absolute value.
	Sums[T Float] [4][SumLanes]T
	// A FlatFunc is a pass over vectors of the same length, a multiple of the lanes of a sum.
	FlatFunc[T Float] func(h *LBFGS, c *Columns[T], out *Sums[T])
)

// Scratch is the scratch memory of ApplyFlat, on the heap like padding.
type Scratch[T Float] struct {
	h       LBFGS
	columns Columns[T]
	padded  [6][SumLanes]T
	sums    Sums[T]
}

// ApplyFlat applies a pass to vectors of any length, of which the first few are written, and returns its sums. The order in
// which lanes are added depends only on the length.
func ApplyFlat[T Float](f FlatFunc[T], h LBFGS, c Columns[T], written int, s *Scratch[T]) [4]float64 {
	defer s.forget()
	group := 128 / int(unsafe.Sizeof(T(0)))
	n := len(c[0])
	whole := n - n%group
	s.h = h
	var total [4]float64
	if whole > 0 {
		for i := range c {
			s.columns[i] = nil
			if c[i] != nil {
				s.columns[i] = c[i][:whole]
			}
		}
		f(&s.h, &s.columns, &s.sums)
		total = fold(&s.sums, group)
	}
	if n > whole {
		for i := range c {
			s.columns[i] = nil
			if c[i] != nil {
				s.columns[i] = s.padded[i][:group]
				clear(s.padded[i][copy(s.padded[i][:], c[i][whole:]):])
			}
		}
		f(&s.h, &s.columns, &s.sums)
		for i := range written {
			copy(c[i][whole:], s.padded[i][:])
		}
		rest := fold(&s.sums, group)
		for i := range Most {
			total[i] += rest[i]
		}
		total[Most] = Maximum(total[Most], rest[Most])
	}
	return total
}

// forget clears the addresses of the vectors. Pooled memory must not contain foreign addresses, where Go may allocate later.
func (s *Scratch[T]) forget() { s.columns = Columns[T]{} }

// fold adds the lanes of every sum, one half to the other repeatedly.
func fold[T Float](s *Sums[T], group int) (total [4]float64) {
	for i := range Most {
		var lanes [SumLanes]float64
		for l := range group {
			lanes[l] = float64(s[i][l])
		}
		for w := group / 2; w > 0; w /= 2 {
			for l := range w {
				lanes[l] += lanes[l+w]
			}
		}
		total[i] = lanes[0]
	}
	for _, x := range s[Most][:group] {
		total[Most] = Maximum(total[Most], float64(x))
	}
	return total
}

// Maximum returns the larger of two numbers, or NaN if one is NaN.
func Maximum(a, b float64) float64 {
	if a > b || math.IsNaN(a) {
		return a
	}
	return b
}
