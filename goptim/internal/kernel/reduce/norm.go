package reduce

import (
	"math"

	"github.com/goptim/goptim/goptim/internal/kernel"
)

// A Norm is torch.linalg.vector_norm of elements that come bit by bit, each while it is still in the cache.
type Norm[T kernel.Float] struct {
	Order Order
	lanes [widest]T
	done  int
}

// Done is how many elements have been added.
func (n *Norm[T]) Done() int { return n.done }

// Extend takes what x has more than at the last call, but for elements that do not fill the lanes.
func (n *Norm[T]) Extend(x []T) {
	whole := len(x) - len(x)%lanesOf[T]()
	addSquares(&n.lanes, x[n.done:whole], n.Order)
	n.done = whole
}

// Of is the norm of x, which begins with what Extend has seen. That of one element is its magnitude: torch squares none.
func (n *Norm[T]) Of(x []T) T {
	if len(x) == 1 {
		return T(math.Abs(float64(x[0])))
	}
	n.Extend(x)
	return Sqrt(finish(&n.lanes, x[n.done:], n.Order))
}
