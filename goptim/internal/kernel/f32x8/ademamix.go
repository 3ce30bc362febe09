//go:build goexperiment.simd && amd64

package f32x8

import (
	"math"

	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32x1"
)

// AdEMAMix applies one step of AdEMAMix to exp_avg, exp_avg_sq and exp_avg_slow.
func AdEMAMix(h *kernel.AdEMAMix, p, g []float32, s [4][]float32) {
	if h.BC2Sqrt.Extreme() { // quotient does not support this
		f32x1.AdEMAMix(h, p, g, s)
		return
	}
	if h.Lerps != 0 {
		lerpAdEMAMix(h, p, g, s)
		return
	}
	sgn, decay, beta1, c1, beta2, c2 := set(h.Sign), set(h.Decay), set(h.Beta1), set(h.C1), set(h.Beta2), set(h.C2)
	beta3, c3, bc1, alpha, step := set(h.Beta3), set(h.C3), set(h.BC1), set(h.Alpha), set(h.Step)
	bc2, eps := divisor{set(h.BC2Sqrt.By), set(-h.BC2Sqrt.By), set(h.BC2Sqrt.Recip), set(math.MaxFloat32)}, set(h.Eps)
	fast, sq, slow := s[0], s[1], s[2]
	for i := 0; i < len(p); i += lanes {
		d := at(g, i).Mul(sgn)
		m := axpy(at(fast, i).Mul(beta1), d, c1)
		l := axpy(at(slow, i).Mul(beta3), d, c3)
		v := addcmul(at(sq, i).Mul(beta2), d, d, c2)
		*at(fast, i) = m
		*at(slow, i) = l
		*at(sq, i) = v
		update := m.Div(bc1).Add(l.Mul(alpha))
		*at(p, i) = axpy(at(p, i).Mul(decay), update.Div(quotient(v.Sqrt(), bc2).Add(eps)), step)
	}
}

// lerpAdEMAMix is AdEMAMix with averages that are lerps, and with the learning rate in the last division.
func lerpAdEMAMix(h *kernel.AdEMAMix, p, g []float32, s [4][]float32) {
	sgn, coupled, wd, decay := set(h.Sign), flag(h.Couples), set(h.WeightDecay), set(h.Decay)
	w1, w3 := weight{set(h.W1.W), flag(h.W1.FromX)}, weight{set(h.W3.W), flag(h.W3.FromX)}
	beta2, c2, bc1, alpha, step := set(h.Beta2), set(h.C2), set(h.BC1), set(h.Alpha), set(h.Step)
	bc2, eps := divisor{set(h.BC2Sqrt.By), set(-h.BC2Sqrt.By), set(h.BC2Sqrt.Recip), set(math.MaxFloat32)}, set(h.Eps)
	fast, sq, slow := s[0], s[1], s[2]
	for i := 0; i < len(p); i += lanes {
		x := *at(p, i)
		d := decayed(x, *at(g, i), sgn, coupled, wd)
		m := lerp(*at(fast, i), d, w1)
		v := addcmul(at(sq, i).Mul(beta2), d, d, c2)
		l := lerp(*at(slow, i), d, w3)
		*at(fast, i) = m
		*at(sq, i) = v
		*at(slow, i) = l
		update := axpy(m.Div(bc1), l, alpha)
		*at(p, i) = addcdiv(x.Mul(decay), update, quotient(v.Sqrt(), bc2).Add(eps), step)
	}
}
