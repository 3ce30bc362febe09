//go:build goexperiment.simd && amd64

package bf16x16

import (
	"unsafe"

	"github.com/goptim/goptim/goptim/internal/kernel"
)

// Kernels with vectors of 512 bits call those with vectors of 256 bits to round with random numbers.

// vectorOf loads a vector. All operands of a hash are in memory, where they need no registers.
func vectorOf(x *[8]uint32) bits { return *(*bits)(unsafe.Pointer(x)) }

// draw returns the random numbers of the elements from i on, those with even indices and the others, in the upper half of each lane,
// from those of the iteration before. Noise.At has the formula: those of the first 16 elements of a group are in the upper halves of
// the hashes, and those of the others in the lower ones. With 256 bits, they are hashed once.
func draw(evens, odds, next bits, i int, z *kernel.Draws) (_, _ bits) {
	if lanes < 16 || i&16 == 0 {
		evens, odds = hash(next, z), hash(next.Add(vectorOf(&z.Stride)), z)
	}
	if i&16 != 0 {
		evens, odds = evens.ShiftAllLeft(16), odds.ShiftAllLeft(16)
	}
	return evens, odds
}

// advance points to the distance of what is hashed in this iteration and in the next one.
func advance(z *kernel.Draws, i int) *bits {
	return (*bits)(unsafe.Pointer(&z.Advance[i%32/lanes]))
}

func hash(x bits, z *kernel.Draws) bits {
	x = x.ShiftAllRight(16).Xor(x).Mul(vectorOf(&z.First))
	x = x.ShiftAllRight(15).Xor(x).Mul(vectorOf(&z.Second))
	return x.ShiftAllRight(15).Xor(x)
}

// drawn rounds the upper half of each lane with a random number in the upper half.
func drawn(x vector, random bits) bits { return x.ToBits().Add(random.ShiftAllRight(16)) }

// joinedDrawn is joined, with random numbers for the elements with odd indices.
func joinedDrawn(evens bits, odds vector, random bits, k halves) bits {
	return evens.BitsToInt32().Or(drawn(odds, random).BitsToInt32().And(k.upper.BitsToInt32())).ToBits()
}
