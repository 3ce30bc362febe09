package kernel

import (
	"math"
	mathbits "math/bits"
	"unsafe"
)

// A Format is how the elements of a buffer are stored.
type Format uint8

// The formats of buffers whose arithmetic is in float32.
const (
	Float32 Format = iota
	BFloat16
	Float16
)

// size returns the size of an element in bytes.
func (f Format) size() int {
	if f == Float32 {
		return 4
	}
	return 2
}

// group is the number of elements that vectors convert at a time.
const group = 32

// widen converts elements to float32. With vectors, their number is a multiple of group, and ahead is the distance in
// bytes of what is prefetched meanwhile.
func widen(to []float32, from unsafe.Pointer, f Format, ahead int) {
	if !widenVectors(to, (*uint16)(from), f, ahead) {
		widenEach(to, from, f)
	}
}

// widenEach is widen for any number of elements, one by one.
func widenEach(to []float32, from unsafe.Pointer, f Format) {
	x := unsafe.Slice((*uint16)(from), len(to))
	if f == BFloat16 {
		for i := range to {
			to[i] = WidenBFloat16(x[i])
		}
		return
	}
	for i := range to {
		to[i] = WidenFloat16(x[i])
	}
}

// narrow rounds elements. With vectors, their number is a multiple of group.
func narrow(to unsafe.Pointer, from []float32, f Format) {
	if !narrowVectors((*uint16)(to), from, f) {
		narrowEach(to, from, f)
	}
}

// narrowEach is narrow for any number of elements, one by one.
func narrowEach(to unsafe.Pointer, from []float32, f Format) {
	x := unsafe.Slice((*uint16)(to), len(from))
	if f == BFloat16 {
		for i := range from {
			x[i] = NarrowBFloat16(from[i])
		}
		return
	}
	for i := range from {
		x[i] = NarrowFloat16(from[i])
	}
}

// These conversions use integers, so that they do not depend on the thread's rounding mode and its treatment of subnormal
// numbers. A NaN keeps its sign and the highest bits of its payload.

// WidenBFloat16 returns the value of a bfloat16.
func WidenBFloat16(x uint16) float32 { return math.Float32frombits(uint32(x) << 16) }

// NarrowBFloat16 rounds x to the nearest bfloat16, a tie to the even one. A NaN becomes quiet.
func NarrowBFloat16(x float32) uint16 {
	b := math.Float32bits(x)
	if b&0x7fffffff > 0x7f800000 {
		return uint16(b>>16) | 0x40
	}
	return uint16((b + 0x7fff + b>>16&1) >> 16)
}

// WidenFloat16 returns the value of a float16. A NaN becomes quiet.
func WidenFloat16(x uint16) float32 {
	sign, magnitude := uint32(x&0x8000)<<16, uint32(x&0x7fff)
	switch {
	case magnitude > 0x7c00:
		return math.Float32frombits(sign | 0x7fc00000 | magnitude<<13)
	case magnitude == 0x7c00:
		return math.Float32frombits(sign | 0x7f800000)
	case magnitude >= 0x400:
		return math.Float32frombits(sign | (magnitude<<13 + 112<<23))
	case magnitude == 0:
		return math.Float32frombits(sign)
	}
	// A subnormal number is a multiple of 2^-24. Its highest bit is added to the exponent.
	shift := mathbits.LeadingZeros32(magnitude) - 8
	return math.Float32frombits(sign | (uint32(125-shift)<<23 + magnitude<<shift))
}

// NarrowFloat16 rounds x to the nearest float16, a tie to the even one. A NaN becomes quiet.
func NarrowFloat16(x float32) uint16 {
	b := math.Float32bits(x)
	sign, magnitude := uint16(b>>16)&0x8000, b&0x7fffffff
	switch {
	case magnitude > 0x7f800000:
		return sign | 0x7e00 | uint16(magnitude>>13&0x3ff)
	case magnitude >= 0x47800000: // 2^16. Smaller numbers that round to infinity carry into the exponent.
		return sign | 0x7c00
	case magnitude >= 0x38800000: // 2^-14
		magnitude -= 112 << 23
		return sign | uint16((magnitude+0xfff+magnitude>>13&1)>>13)
	case magnitude < 0x33000000: // 2^-25
		return sign
	}
	shift := 126 - magnitude>>23
	m := magnitude&0x7fffff | 0x800000
	return sign | uint16((m+1<<(shift-1)-1+m>>shift&1)>>shift)
}
