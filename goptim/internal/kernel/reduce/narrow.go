package reduce

import (
	"math"
	"sync"
	"unsafe"

	"github.com/goptim/goptim/goptim/internal/kernel"
)

// NarrowNorms is Norms for tensors of 16 bits, whose sums are in float32. torch adds the squares of a bfloat16 tensor in the lanes of
// float32, two vectors at a time, and does not fuse any in its newest build for x86-64. It adds those of float16 one by one, in as
// many parts as it has threads.
type NarrowNorms struct {
	Order   Order
	Format  kernel.Format
	Widen   bool      // like Norms, for float32 tensors with the same elements; the norms are not rounded
	Threads int       // torch's number of threads
	Norms   []float32 // the result of every tensor
	part    bool      // the results are sums of squares
	used    int
	sums    [4]unfinished[uint16]
	lanes   [4][widest]float32
	blocks  *[4][narrowBlock + 16]float32
}

// narrowBlock is the number of elements that are widened at a time.
const narrowBlock = 512

var narrowBlocks = sync.Pool{New: func() any { return new([4][narrowBlock + 16]float32) }}

// serial reports whether squares are added one by one.
func (n *NarrowNorms) serial() bool { return n.Format == kernel.Float16 && !n.Widen }

// unit is the number of elements that are added to the lanes at a time.
func (n *NarrowNorms) unit() int {
	switch {
	case n.serial():
		return 1
	case n.Widen:
		return lanesIn[float32](n.Order)
	}
	return 2 * lanesIn[float32](n.Order)
}

// Add adds tensor i. Its norm is known after Finish.
func (n *NarrowNorms) Add(i int, x []uint16) {
	if n.serial() && n.Threads > 1 && len(x) >= Grain {
		n.Norms[i] = n.round(Sqrt(n.inParts(x)))
		return
	}
	whole := len(x) - len(x)%n.unit()
	if whole == 0 || len(x) == 1 {
		n.Norms[i] = n.norm(&[widest]float32{}, x, 0)
		return
	}
	n.put(i, x, whole)
	if n.used == len(n.sums) {
		n.run()
	}
}

func (n *NarrowNorms) put(i int, x []uint16, whole int) {
	n.sums[n.used], n.lanes[n.used] = unfinished[uint16]{x, i, 0, whole}, [widest]float32{}
	n.used++
}

// Finish computes the norms of all tensors that were added.
func (n *NarrowNorms) Finish() {
	for n.used > 0 {
		n.run()
	}
	if n.blocks != nil {
		narrowBlocks.Put(n.blocks)
		n.blocks = nil
	}
}

// inParts adds the squares of a tensor in as many parts as torch has threads, and then the sums.
func (n *NarrowNorms) inParts(x []uint16) float32 {
	parts := min(n.Threads, (len(x)+Grain-1)/Grain)
	size := (len(x) + parts - 1) / parts
	var sums [len(n.sums)]float32
	of := NarrowNorms{Order: n.Order, Format: n.Format, Norms: sums[:], part: true}
	total := float32(0)
	for lo := 0; lo < len(x); {
		count := 0
		for ; lo < len(x) && count < len(sums); lo += size {
			part := x[lo:min(lo+size, len(x))]
			of.put(count, part, len(part))
			count++
		}
		of.Finish()
		for _, sum := range sums[:count] {
			total += sum
		}
	}
	return total
}

// round returns a norm as the tensor's type has it.
func (n *NarrowNorms) round(x float32) float32 {
	switch {
	case n.Widen || n.part:
		return x
	case n.Format == kernel.BFloat16:
		return kernel.WidenBFloat16(kernel.NarrowBFloat16(x))
	}
	return kernel.WidenFloat16(kernel.NarrowFloat16(x))
}

// norm returns the norm of x, of whose elements the first ones have been added to the lanes.
func (n *NarrowNorms) norm(lanes *[widest]float32, x []uint16, whole int) float32 {
	var tail [2 * widest]float32
	rest := tail[:len(x)-whole]
	if len(rest) > 0 {
		kernel.Load(rest, unsafe.Pointer(&x[whole]), n.Format, 0)
	}
	if n.part {
		return lanes[0]
	}
	if len(x) == 1 {
		return float32(math.Abs(float64(rest[0])))
	}
	if n.Widen {
		return Sqrt(finish(lanes, rest, n.Order))
	}
	sum := lanes[0]
	if !n.serial() {
		for _, lane := range lanes[1:lanesIn[float32](n.Order)] {
			sum += lane
		}
	}
	for _, x := range rest {
		sum = addSquare(sum, x, n.Order)
	}
	return n.round(Sqrt(sum))
}

// run continues the sums until at least one is complete.
func (n *NarrowNorms) run() {
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
func (n *NarrowNorms) addSquares(count int) {
	var at [4]*uint16
	for k := range at {
		s := &n.sums[min(k, n.used-1)] // unused sums take as long as used ones, and are ignored
		at[k] = &s.x[s.done]
	}
	if vectors && !n.Order.Narrow && n.Format == kernel.BFloat16 {
		if n.used == 1 {
			addSquaresBFloat16(&n.lanes[0], at[0], count, n.Order.Fused)
		} else {
			addFourSquaresBFloat16(&n.lanes, at[0], at[1], at[2], at[3], count, n.Order.Fused)
		}
		return
	}
	if n.blocks == nil {
		n.blocks = narrowBlocks.Get().(*[4][narrowBlock + 16]float32)
	}
	for lo := 0; lo < count; lo += narrowBlock {
		size := min(narrowBlock, count-lo)
		ahead := 0
		if count-lo >= 2*narrowBlock {
			ahead = 2 * narrowBlock
		}
		for k := range n.used {
			kernel.Load(n.blocks[k][:size], unsafe.Add(unsafe.Pointer(at[k]), 2*lo), n.Format, ahead)
		}
		n.addBlocks(size)
	}
}

// addBlocks adds the squares of the elements in the blocks.
func (n *NarrowNorms) addBlocks(size int) {
	b, l := n.blocks, &n.lanes
	switch {
	case n.serial() && n.used == 1:
		// A square of a float16 is exact in float32, so fusing it into the sum changes nothing.
		sum := l[0][0]
		for _, x := range b[0][:size] {
			sum += x * x
		}
		l[0][0] = sum
	case n.serial():
		s0, s1, s2, s3 := l[0][0], l[1][0], l[2][0], l[3][0]
		b0, b1, b2, b3 := b[0][:size], b[1][:size], b[2][:size], b[3][:size]
		for i := range b0 {
			s0 += b0[i] * b0[i]
			s1 += b1[i] * b1[i]
			s2 += b2[i] * b2[i]
			s3 += b3[i] * b3[i]
		}
		l[0][0], l[1][0], l[2][0], l[3][0] = s0, s1, s2, s3
	case n.used == 1 || !vectors || n.Order.Narrow:
		for k := range n.used {
			addSquares(&l[k], b[k][:size], n.Order)
		}
	default:
		addFourSquaresFloat32(l, &b[0][0], &b[1][0], &b[2][0], &b[3][0], size, n.Order.Fused)
	}
}
