//go:build goexperiment.simd && amd64

package f32x8

import "github.com/goptim/goptim/goptim/internal/kernel"

// Lion applies one step of Lion to exp_avg.
func Lion(h *kernel.Lion, p, g []float32, s [4][]float32) {
	if h.Cautious != 0 {
		cautiousLion(h, p, g, s[0])
		return
	}
	if h.Lerps != 0 {
		lerpLion(h, p, g, s[0])
		return
	}
	decay, step := set(h.Decay), set(h.Step)
	beta1, c1, beta2, c2 := set(h.Beta1), set(h.C1), set(h.Beta2), set(h.C2)
	one, minus := set(1).ToBits(), set(-1).ToBits()
	avg := s[0]
	for i := 0; i < len(p); i += lanes {
		d, m := *at(g, i), *at(avg, i)
		direction := axpy(m.Mul(beta1), again(d), c1)
		*at(avg, i) = axpy(m.Mul(beta2), d, c2)
		*at(p, i) = axpy(at(p, i).Mul(decay), signOf(direction, one, minus), step)
	}
}

// lerpLion is Lion with averages that are lerps, which round differently.
func lerpLion(h *kernel.Lion, p, g, avg []float32) {
	sgn, decay, step := set(h.Sign), set(h.Decay), set(h.Step)
	w1, w2 := weight{set(h.W1.W), flag(h.W1.FromX)}, weight{set(h.W2.W), flag(h.W2.FromX)}
	one, minus := set(1).ToBits(), set(-1).ToBits()
	for i := 0; i < len(p); i += lanes {
		d, m := at(g, i).Mul(sgn), *at(avg, i)
		direction := lerp(m, d, w1)
		*at(avg, i) = lerp(m, d, w2)
		*at(p, i) = axpy(at(p, i).Mul(decay), signOf(direction, one, minus), step)
	}
}

// cautiousLion is lerpLion with a mask of the update.
func cautiousLion(h *kernel.Lion, p, g, avg []float32) {
	sgn, decay, step := set(h.Sign), set(h.Decay), set(h.Step)
	w1, w2 := weight{set(h.W1.W), flag(h.W1.FromX)}, weight{set(h.W2.W), flag(h.W2.FromX)}
	inverse, always := set(h.Inverse), flag(1-h.Cautious)
	one, minus := set(1).ToBits(), set(-1).ToBits()
	for i := 0; i < len(p); i += lanes {
		d, m := at(g, i).Mul(sgn), *at(avg, i)
		direction := signOf(lerp(m, d, w1), one, minus)
		*at(avg, i) = lerp(m, d, w2)
		*at(p, i) = axpy(at(p, i).Mul(decay), masked(direction, d, inverse, always), step)
	}
}

// LionAgrees replaces p by the mask of the update.
func LionAgrees(h *kernel.Lion, p, g []float32, s [4][]float32) {
	sgn, w1 := set(h.Sign), weight{set(h.W1.W), flag(h.W1.FromX)}
	one, minus := set(1).ToBits(), set(-1).ToBits()
	avg := s[0]
	for i := 0; i < len(p); i += lanes {
		d := at(g, i).Mul(sgn)
		*at(p, i) = agrees(signOf(lerp(*at(avg, i), d, w1), one, minus), d, one)
	}
}

// signOf is 1, -1, or 0 for a zero and for a NaN.
func signOf(x vector, one, minus bits) vector {
	return above(x, zeros()).And(one).Or(above(zeros(), x).And(minus)).BitsToFloat32()
}
