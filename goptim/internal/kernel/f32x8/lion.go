//go:build goexperiment.simd && amd64

package f32x8

import "github.com/goptim/goptim/goptim/internal/kernel"

// Lion applies one step of Lion to exp_avg.
func Lion(h *kernel.Lion, p, g []float32, s [3][]float32) {
	decay, step := set(h.Decay), set(h.Step)
	beta1, c1, beta2, c2 := set(h.Beta1), set(h.C1), set(h.Beta2), set(h.C2)
	one, minus := set(1).ToBits(), set(-1).ToBits()
	avg := s[0]
	for i := 0; i < len(p); i += lanes {
		d, m := *at(g, i), *at(avg, i)
		direction := axpy(m.Mul(beta1), d, c1)
		*at(avg, i) = axpy(m.Mul(beta2), d, c2)
		*at(p, i) = axpy(at(p, i).Mul(decay), signOf(direction, one, minus), step)
	}
}

// signOf is 1, -1, or 0 for a zero and for a NaN.
func signOf(x vector, one, minus bits) vector {
	return above(x, zeros()).And(one).Or(above(zeros(), x).And(minus)).BitsToFloat32()
}
