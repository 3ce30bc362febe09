package kernel

import (
	"math"
	"unsafe"
)

// LBFGS holds the scalars of a pass of L-BFGS.
type LBFGS struct{ A, B float64 }

// SumLanes is the most lanes of a sum: those of float32.
const SumLanes = 32

// Most is the place of the largest absolute value among Sums.
const Most = 3

type (
	// Columns are parts of flat vectors, of one length; those that a pass writes come first.
	Columns[T Float] [6][]T
	// Sums are the lanes of what a pass sums up, and at Most of the largest absolute value.
	Sums[T Float] [4][SumLanes]T
	// A FlatFunc is a pass over columns of one length, a multiple of the lanes of a sum.
	FlatFunc[T Float] func(h *LBFGS, c *Columns[T], out *Sums[T])
)

// Scratch is the memory of ApplyFlat, on the heap as padding is.
type Scratch[T Float] struct {
	h       LBFGS
	columns Columns[T]
	padded  [6][SumLanes]T
	sums    Sums[T]
}

// ApplyFlat applies a pass to columns of any length, of which the first few are written, and returns its sums: lanes are
// added in an order that depends on nothing but the length.
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

// forget drops the addresses of columns: what is pooled must not hold any to memory that is not Go's, where Go's own may
// lie one day.
func (s *Scratch[T]) forget() { s.columns = Columns[T]{} }

// fold adds the lanes of every sum, halves upon each other.
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

// Maximum is the larger of two numbers, or NaN if one is.
func Maximum(a, b float64) float64 {
	if a > b || math.IsNaN(a) {
		return a
	}
	return b
}
