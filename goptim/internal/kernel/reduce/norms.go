package reduce

import (
	"math"
	"unsafe"

	"github.com/goptim/goptim/goptim/internal/kernel"
)

// Norms computes the norms of several tensors, each like Norm. It sums four of them at a time, because every addition to a sum
// waits for the previous one.
type Norms[T kernel.Float] struct {
	Order Order
	Norms []T // the result of every tensor
	used  int // number of sums in progress
	sums  [4]unfinished[T]
	lanes [4][widest]T // of the sums
}

// unfinished is a tensor with a sum of its elements up to done.
type unfinished[T any] struct {
	x           []T
	i           int // index of the tensor
	done, whole int // whole is the number of elements without the tail
}

// most is the largest number of elements that are added to a sum at a time, since Go's garbage collector waits for it.
const most = 1 << 18

// Add adds tensor i. Its norm is known after Finish.
func (n *Norms[T]) Add(i int, x []T) {
	whole := len(x) - len(x)%lanesIn[T](n.Order)
	if whole == 0 {
		n.Norms[i] = n.norm(&[widest]T{}, x, 0)
		return
	}
	n.sums[n.used] = unfinished[T]{x, i, 0, whole}
	n.lanes[n.used] = [widest]T{}
	if n.used++; n.used == len(n.sums) {
		n.run()
	}
}

// Finish computes the norms of all tensors that were added.
func (n *Norms[T]) Finish() {
	for n.used > 0 {
		n.run()
	}
}

// norm returns the norm of x, of whose elements the first ones have been added to the lanes.
func (n *Norms[T]) norm(lanes *[widest]T, x []T, whole int) T {
	if len(x) == 1 {
		return T(math.Abs(float64(x[0])))
	}
	return Sqrt(finish(lanes, x[whole:], n.Order))
}

// run continues the sums until at least one is complete.
func (n *Norms[T]) run() {
	for before := n.used; n.used == before; {
		count := most
		for k := range n.used {
			count = min(count, n.sums[k].whole-n.sums[k].done)
		}
		n.addSquares(count)
		for k := n.used - 1; k >= 0; k-- {
			s := &n.sums[k]
			if s.done += count; s.done < s.whole {
				continue
			}
			n.Norms[s.i] = n.norm(&n.lanes[k], s.x, s.whole)
			n.used--
			n.sums[k], n.lanes[k] = n.sums[n.used], n.lanes[n.used]
		}
	}
}

// addSquares adds the next elements of every tensor to its sum.
func (n *Norms[T]) addSquares(count int) {
	if n.used == 1 || !vectors || n.Order.Narrow {
		for k := range n.used {
			s := &n.sums[k]
			addSquares(&n.lanes[k], s.x[s.done:s.done+count], n.Order)
		}
		return
	}
	var at [4]*T
	for k := range at {
		s := &n.sums[min(k, n.used-1)] // unused sums take as long as used ones, and are ignored
		at[k] = &s.x[s.done]
	}
	if unsafe.Sizeof(T(0)) == 4 {
		x := (*[4]*float32)(unsafe.Pointer(&at))
		addFourSquaresFloat32((*[4][widest]float32)(unsafe.Pointer(&n.lanes)), x[0], x[1], x[2], x[3], count, n.Order.Fused)
	} else {
		x := (*[4]*float64)(unsafe.Pointer(&at))
		addFourSquaresFloat64((*[4][widest]float64)(unsafe.Pointer(&n.lanes)), x[0], x[1], x[2], x[3], count, n.Order.Fused)
	}
}
