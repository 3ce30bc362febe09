package matmul

import "math"

// BFloat16 rounds to the nearest bfloat16, ties to even. Its bits are the upper half of the float32 that is returned.
func BFloat16(x float32) float32 {
	bits := math.Float32bits(x)
	if bits&0x7fffffff > 0x7f800000 {
		return x // a NaN, which rounding could turn into an infinity or a zero
	}
	return math.Float32frombits((bits + 0x7fff + bits>>16&1) &^ 0xffff)
}
