//go:build goexperiment.simd && amd64

package f32x8

import (
	"math"

	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32x1"
)

// Rprop applies one step of Rprop to prev and step_size.
func Rprop(h *kernel.Rprop, p, g []float32, s [4][]float32) {
	if math.Float64bits(h.Unusual) != 0 {
		f32x1.Rprop(h, p, g, s)
		return
	}
	sgn, zero, low, high := set(h.Sign), set(math.Copysign(0, -1)), set(h.Min), set(h.Max)
	one, minus, etaMinus := set(1).ToBits(), set(-1).ToBits(), set(h.EtaMinus)
	toPlus, toMinus := set(h.Plus).ToBits().Xor(one), set(h.Minus).ToBits().Xor(one)
	prev, size := s[0], s[1]
	flip := sgn.ToBits().Xor(one) // a product would flush subnormal numbers of prev
	for i := 0; i < len(p); i += lanes {
		d := at(g, i).ToBits().Xor(flip).BitsToFloat32()
		turned := d.Mul(*at(prev, i))
		back := above(zero, turned)
		factor := above(turned, zero).And(toPlus).Xor(back.And(toMinus)).Xor(one).BitsToFloat32()
		z := at(size, i).Mul(factor)
		isNaN := nan(z)
		if lanes == 1 { // as in torch; other lanes are the same unless the factors are unusual
			back = equal(factor, etaMinus)
			isNaN = isNaN.Or(nan(low)).Or(nan(high))
		}
		z = keepNaN(z.Max(low).Min(high), isNaN)
		d = d.ToBits().AndNot(back).BitsToFloat32()
		*at(size, i) = z
		*at(prev, i) = quiet(d)
		*at(p, i) = against(d, zero, one, minus).MulAdd(z, *at(p, i))
	}
}

// against is -1 for a positive number, 1 for a negative one, and -0 (the value of zero) for a zero and for a NaN.
func against(x, zero vector, one, minus bits) vector {
	return above(x, zero).And(one).Xor(above(zero, x).And(minus)).Xor(zero.ToBits()).BitsToFloat32()
}
