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
}

// Done returns the number of elements that have been added.
func (n *Norm[T]) Done() int { return n.done }

// Extend adds the elements of x after those of the last call, without the tail that does not fill the lanes.
func (n *Norm[T]) Extend(x []T) {
	whole := len(x) - len(x)%lanesIn[T](n.Order)
	addSquares(&n.lanes, x[n.done:whole], n.Order)
	n.done = whole
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
