package reduce

import (
	"math"

	"github.com/goptim/goptim/goptim/internal/kernel"
)

// A Norm computes torch.linalg.vector_norm incrementally, while the elements are in the cache.
type Norm[T kernel.Float] struct {
	Order Order
	lanes [widest]T
	done  int
	rest  [widest]T // the last elements passed to Next, which do not fill the lanes
	left  int       // their number
}

// Done returns the number of elements that have been added.
func (n *Norm[T]) Done() int { return n.done }

// Extend adds the elements of x after those of the last call, without the tail that does not fill the lanes.
func (n *Norm[T]) Extend(x []T) {
	whole := len(x) - len(x)%lanesIn[T](n.Order)
	addSquares(&n.lanes, x[n.done:whole], n.Order)
	n.done = whole
}

// Next adds the elements of x after those of the last call. Their number must be a multiple of 64, unless it is the last call.
// They need not be in memory after it.
func (n *Norm[T]) Next(x []T) {
	whole := len(x) - len(x)%lanesIn[T](n.Order)
	addSquares(&n.lanes, x[:whole], n.Order)
	n.done += len(x)
	n.left = copy(n.rest[:], x[whole:])
}

// End returns the norm of the elements passed to Next.
func (n *Norm[T]) End() T {
	if n.done == 1 {
		return T(math.Abs(float64(n.rest[0])))
	}
	return Sqrt(finish(&n.lanes, n.rest[:n.left], n.Order))
}

// Of returns the norm of x, which must begin with the elements passed to Extend. The norm of one element is its magnitude, because
// torch does not square it.
func (n *Norm[T]) Of(x []T) T {
	if len(x) == 1 {
		return T(math.Abs(float64(x[0])))
	}
	n.Extend(x)
	return Sqrt(finish(&n.lanes, x[n.done:], n.Order))
}
