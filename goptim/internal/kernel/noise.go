package kernel

import (
	"math"
	mathbits "math/bits"
	"unsafe"
)

// A Noise has a random number of 32 bits for each element of a tensor. It depends on nothing but the seed, the step, the index of
// the parameter and the index of the element, and repeats after 2^33 elements.
//
// Of 32 elements, the number of element i and of element i+16 are the same 32 bits, rotated by 16: only the highest 16 bits decide
// about rounding to bfloat16, and almost alone about rounding to float16.
type Noise struct {
	start, stride uint32 // of the numbers that are hashed
	On            bool
}

// NoiseOf returns the noise of a step of a parameter.
func NoiseOf(seed, step uint64, param uint32) Noise {
	const golden = 0x9e3779b97f4a7c15
	k := mix(mix(mix(seed+golden)+step) + uint64(param))
	return Noise{start: uint32(k), stride: uint32(k>>32) | 1, On: true}
}

// mix is the finalizer of SplitMix64.
func mix(z uint64) uint64 {
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// The multipliers and shifts are the best ones known of two multiplications: nullprogram.com/blog/2018/07/31.
const firstFactor, secondFactor = 0x21f0aaad, 0x735a2d97

// first returns the number that is hashed for the elements from first on, which is a multiple of group.
func (z *Noise) first(first int) uint32 { return z.start + z.stride*uint32(first/2) }

// At returns the random number of an element.
func (z *Noise) At(i int) uint32 {
	x := z.first(i&^(group-1)) + z.stride*uint32(i%(group/2))
	x = (x ^ x>>16) * firstFactor
	x = (x ^ x>>15) * secondFactor
	x ^= x >> 15
	if i&(group/2) != 0 {
		x = mathbits.RotateLeft32(x, 16)
	}
	return x
}

// narrowWith rounds elements up in magnitude with the probability of their distance from the number below, divided by the distance
// of both neighbors. The first one has the given index, a multiple of group. With vectors, their number is a multiple of group.
func narrowWith(z *Noise, to unsafe.Pointer, from []float32, f Format, first int) {
	if !narrowVectorsWith(z, (*uint16)(to), from, f, first) {
		narrowEachWith(z, to, from, f, first)
	}
}

// narrowEachWith is narrowWith for any number of elements from any index on, one by one.
func narrowEachWith(z *Noise, to unsafe.Pointer, from []float32, f Format, first int) {
	x := unsafe.Slice((*uint16)(to), len(from))
	for i := range from {
		if f == BFloat16 {
			x[i] = StochasticBFloat16(from[i], z.At(first+i))
		} else {
			x[i] = StochasticFloat16(from[i], z.At(first+i))
		}
	}
}

// StochasticBFloat16 rounds x to one of the two bfloat16 around it: up in magnitude if the distance to the lower one, in units of
// the distance of both, is at least 1 - random/2^32. Infinity counts as the power of two that follows the largest number. A
// number that bfloat16 represents, infinity and a NaN are as from NarrowBFloat16.
func StochasticBFloat16(x float32, random uint32) uint16 {
	b := math.Float32bits(x)
	if b&0x7fffffff > 0x7f800000 {
		return uint16(b>>16) | 0x40
	}
	return uint16((b + random>>16) >> 16)
}

// StochasticFloat16 is StochasticBFloat16 for float16.
func StochasticFloat16(x float32, random uint32) uint16 {
	b := math.Float32bits(x)
	sign, magnitude := uint16(b>>16)&0x8000, b&0x7fffffff
	var below, rest uint32 // the number below, and 2^32 times what is above it in units of the last place
	switch {
	case magnitude > 0x7f800000:
		return sign | 0x7e00 | uint16(magnitude>>13&0x3ff)
	case magnitude >= 0x47800000: // 2^16
		return sign | 0x7c00
	case magnitude >= 0x38800000: // 2^-14
		below, rest = (magnitude-112<<23)>>13, magnitude<<19
	default:
		shift := 126 - magnitude>>23
		m := magnitude&0x7fffff | 0x800000
		below = m >> shift
		if shift <= 32 {
			rest = m << (32 - shift)
		} else {
			rest = m >> (shift - 32)
		}
	}
	if rest > ^random {
		below++
	}
	return sign | uint16(below)
}

// add adds elements. With vectors, their number is a multiple of group.
func add(to, from []float32) {
	if addVectors(to, from) {
		return
	}
	for i, x := range from[:len(to)] {
		to[i] += x
	}
}

// subtract subtracts elements from those of another slice. A result that is not finite becomes 0. With vectors, their number is a
// multiple of group.
func subtract(to, from []float32) {
	if !subtractVectors(to, from) {
		subtractEach(to, from)
	}
}

// subtractEach is subtract for any number of elements, one by one.
func subtractEach(to, from []float32) {
	for i, x := range from[:len(to)] {
		to[i] = x - to[i]
		if math.Float32bits(to[i])&0x7f800000 == 0x7f800000 {
			to[i] = 0
		}
	}
}
