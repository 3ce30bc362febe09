//go:build goexperiment.simd && amd64

// Package bf16x16 has the arithmetic of the optimizers on bfloat16 elements, in float32. Its kernels are generated from those of
// package f32x8. This file is the source of what replaces f32x8's loads and stores.
package bf16x16

import (
	"simd/archsimd"
	"unsafe"
)

// An iteration of a loop loads as many pairs of elements as a vector of float32 has lanes, and runs the loop's body twice: on the
// elements with even indices, and on the others. A bfloat16 is the upper half of a float32, so shifts and masks convert it.
//
// An operation has a NaN with a lower half of zeros from numbers whose NaN are such. Rounding keeps them, so it needs no special
// case. An operation on bits that can have another NaN uses keepNaN or quiet, and scalars that are NaN are left to
// kernel.ApplyMixed.

type (
	vector = archsimd.Float32x8
	bits   = archsimd.Uint32x8
	// words are bits too. Only for signed vectors, the compiler merges two logical operations into one instruction of AVX-512.
	words = archsimd.Int32x8
)

// lanes is the number of elements that an iteration processes. All buffers of a kernel have the same length, a multiple of
// lanes: see kernel.ApplyBFloat16.
const lanes = 16

// at points to the pairs that begin at element i of a buffer: see f32x8.
//
//go:nocheckptr
func at(s []uint16, i int) *bits {
	return (*bits)(unsafe.Add(unsafe.Pointer(unsafe.SliceData(s)), uintptr(i)*unsafe.Sizeof(s[0])))
}

// halves has the constants of conversions: the lowest bit, minus 0x7fff, and the bits of the upper half.
type halves struct {
	one, below words
	upper      bits
}

func constants() halves {
	return halves{archsimd.BroadcastInt32x8(1), archsimd.BroadcastInt32x8(-0x7fff), archsimd.BroadcastUint32x8(0xffff0000)}
}

// rounded rounds the upper half of each lane to nearest even, by adding 0x7fff, and 1 more if the lowest bit of the upper half is
// set. With 512 bits, the negative of this sum is subtracted, which is one logical operation.
func rounded(x vector, k halves) bits {
	if lanes == 32 {
		return x.ToBits().Sub(x.ToBits().ShiftAllRight(16).BitsToInt32().And(k.one).Xor(k.below).ToBits())
	}
	return x.ToBits().ShiftAllLeft(15).ShiftAllRight(31).Add(x.ToBits()).Sub(k.below.ToBits())
}

// joined are all elements: those with even indices, which are rounded and in the lower half of each lane, and the others.
func joined(evens bits, odds vector, k halves) bits {
	return evens.BitsToInt32().Or(rounded(odds, k).BitsToInt32().And(k.upper.BitsToInt32())).ToBits()
}

// keepNaN is one logical operation with 512 bits. A NaN is the upper half of the bits, which the conversions need too.
func keepNaN(x vector, isNaN bits) vector {
	if lanes == 32 {
		other := x.ToBits().BitsToInt32()
		return other.Xor(constants().upper.BitsToInt32()).And(isNaN.BitsToInt32()).Xor(other).ToBits().BitsToFloat32()
	}
	return x.ToBits().Or(isNaN).AndNot(isNaN.ShiftAllRight(16)).BitsToFloat32()
}

func quiet(x vector) vector {
	return nan(x).ShiftAllRight(31).ShiftAllLeft(22).Or(x.ToBits()).BitsToFloat32()
}

// again has an instruction, because the compiler's own copies can only use half of the registers of AVX-512.
func again(x vector) vector { return x.ToBits().Or(x.ToBits()).BitsToFloat32() }
