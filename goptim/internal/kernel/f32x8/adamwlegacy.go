//go:build goexperiment.simd && amd64

package f32x8

import (
	"math"

	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32x1"
)

// AdamWLegacy applies one step of AdamW, with a mask or a bound of the update, to exp_avg and exp_avg_sq, and of AMSGrad if there is
// a third state, max_exp_avg_sq.
func AdamWLegacy(h *kernel.AdamWLegacy, p, g []float32, s [4][]float32) {
	if h.BC2Sqrt.Extreme() { // quotient does not support this
		f32x1.AdamWLegacy(h, p, g, s)
		return
	}
	sgn, decay, beta2, c2, step := set(h.Sign), set(h.Decay), set(h.Beta2), set(h.C2), set(h.Step)
	c1 := weight{set(h.C1.W), flag(h.C1.FromX)}
	bc2, eps := divisor{set(h.BC2Sqrt.By), set(-h.BC2Sqrt.By), set(h.BC2Sqrt.Recip), set(math.MaxFloat32)}, set(h.Eps)
	excess, inverse, always := set(h.Excess), set(h.Inverse), flag(1-h.Cautious)
	avg, sq, most := s[0], s[1], s[2]
	if most != nil {
		for i := 0; i < len(p); i += lanes {
			d := at(g, i).Mul(sgn)
			m := lerp(*at(avg, i), d, c1)
			v := addcmul(at(sq, i).Mul(beta2), d, d, c2)
			largest := maximum(*at(most, i), v)
			*at(avg, i) = m
			*at(sq, i) = v
			*at(most, i) = largest
			denom := quotient(largest.Sqrt(), bc2).Add(eps).Mul(excess)
			*at(p, i) = addcdiv(at(p, i).Mul(decay), masked(m, d, inverse, always), denom, step)
		}
		return
	}
	for i := 0; i < len(p); i += lanes {
		d := at(g, i).Mul(sgn)
		m := lerp(*at(avg, i), d, c1)
		v := addcmul(at(sq, i).Mul(beta2), d, d, c2)
		*at(avg, i) = m
		*at(sq, i) = v
		denom := quotient(v.Sqrt(), bc2).Add(eps).Mul(excess)
		*at(p, i) = addcdiv(at(p, i).Mul(decay), masked(m, d, inverse, always), denom, step)
	}
}

// AdamWAgrees replaces p by the mask of the update.
func AdamWAgrees(h *kernel.AdamWLegacy, p, g []float32, s [4][]float32) {
	sgn, one := set(h.Sign), set(1).ToBits()
	c1 := weight{set(h.C1.W), flag(h.C1.FromX)}
	avg := s[0]
	for i := 0; i < len(p); i += lanes {
		d := at(g, i).Mul(sgn)
		*at(p, i) = agrees(lerp(*at(avg, i), d, c1), d, one)
	}
}

// AdamWQuotient replaces p by the gradient divided by the denominator.
func AdamWQuotient(h *kernel.AdamWLegacy, p, g []float32, s [4][]float32) {
	if h.BC2Sqrt.Extreme() {
		f32x1.AdamWQuotient(h, p, g, s)
		return
	}
	sgn, beta2, c2 := set(h.Sign), set(h.Beta2), set(h.C2)
	bc2, eps := divisor{set(h.BC2Sqrt.By), set(-h.BC2Sqrt.By), set(h.BC2Sqrt.Recip), set(math.MaxFloat32)}, set(h.Eps)
	sq, most := s[1], s[2]
	for i := 0; i < len(p); i += lanes {
		d := at(g, i).Mul(sgn)
		v := addcmul(at(sq, i).Mul(beta2), d, d, c2)
		if most != nil {
			v = maximum(*at(most, i), v)
		}
		*at(p, i) = d.Div(quotient(v.Sqrt(), bc2).Add(eps))
	}
}
