//go:build goexperiment.simd && !wasm && !amd64

package f32

import (
	"math"
	"simd"

	"github.com/goptim/goptim/goptim/internal/kernel"
	lane "github.com/goptim/goptim/goptim/internal/kernel/lane/f32"
)

// Rprop applies one step of Rprop to prev and step_size.
func Rprop(h *kernel.Rprop, p, g []float32, s [3][]float32) {
	if simd.Emulated() || math.Float64bits(h.Unusual) != 0 { // emulation rounds MulAdd twice
		lane.Rprop(h, p, g, s)
		return
	}
	sgn, zero, low, high := set(h.Sign), set(math.Copysign(0, -1)), set(h.Min), set(h.Max)
	one, minus, etaMinus := set(1).ToBits(), set(-1).ToBits(), set(h.EtaMinus)
	toPlus, toMinus := set(h.Plus).ToBits().Xor(one), set(h.Minus).ToBits().Xor(one)
	prev, size, w := s[0], s[1], zero.Len()
	for i := 0; i < len(p); i += w {
		d := at(g, i).Mul(sgn)
		turned := d.Mul(*at(prev, i))
		back := above(zero, turned)
		factor := above(turned, zero).And(toPlus).Xor(back.And(toMinus)).Xor(one).BitsToFloat32()
		z := at(size, i).Mul(factor)
		isNaN := nan(z)
		if w == 1 { // as torch has it: the same unless the factors are unusual
			back = factor.Equal(etaMinus).ToInt32s().ToBits()
			isNaN = isNaN.Or(nan(low)).Or(nan(high))
		}
		z = z.Max(low).Min(high).ToBits().Or(isNaN).BitsToFloat32()
		d = d.ToBits().AndNot(back).BitsToFloat32()
		*at(size, i) = z
		*at(prev, i) = d
		*at(p, i) = against(d, zero, one, minus).MulAdd(z, *at(p, i))
	}
}

// against is -1 for a positive number, 1 for a negative one, and -0, which zero is, for a zero and for a NaN.
func against(x, zero simd.Float32s, one, minus bits) simd.Float32s {
	return above(x, zero).And(one).Xor(above(zero, x).And(minus)).Xor(zero.ToBits()).BitsToFloat32()
}
