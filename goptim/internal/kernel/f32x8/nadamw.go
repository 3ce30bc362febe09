//go:build goexperiment.simd && amd64

package f32x8

import (
	"math"

	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32x1"
)

// NAdamW applies one step of NAdamW to exp_avg and exp_avg_sq.
func NAdamW(h *kernel.NAdamW, p, g []float32, s [4][]float32) {
	if h.BC2Sqrt.Extreme() { // quotient does not support this
		f32x1.NAdamW(h, p, g, s)
		return
	}
	if h.Cautious != 0 || h.Threshold != 0 {
		cautiousNAdamW(h, p, g, s)
		return
	}
	sgn, decay, beta2, c2, step := set(h.Sign), set(h.Decay), set(h.Beta2), set(h.C2), set(h.Step)
	c1 := weight{set(h.C1.W), flag(h.C1.FromX)}
	bc2, eps := divisor{set(h.BC2Sqrt.By), set(-h.BC2Sqrt.By), set(h.BC2Sqrt.Recip), set(math.MaxFloat32)}, set(h.Eps)
	avg, sq := s[0], s[1]
	for i := 0; i < len(p); i += lanes {
		d := at(g, i).Mul(sgn)
		m := lerp(*at(avg, i), d, c1)
		v := addcmul(at(sq, i).Mul(beta2), d, d, c2)
		*at(avg, i) = m
		*at(sq, i) = v
		*at(p, i) = adamStep(*at(p, i), lerp(m, d, c1), v, decay, step, bc2, eps)
	}
}

// cautiousNAdamW has a mask or a bound of the update.
func cautiousNAdamW(h *kernel.NAdamW, p, g []float32, s [4][]float32) {
	sgn, decay, beta2, c2, step := set(h.Sign), set(h.Decay), set(h.Beta2), set(h.C2), set(h.Step)
	c1 := weight{set(h.C1.W), flag(h.C1.FromX)}
	bc2, eps := divisor{set(h.BC2Sqrt.By), set(-h.BC2Sqrt.By), set(h.BC2Sqrt.Recip), set(math.MaxFloat32)}, set(h.Eps)
	excess, inverse, always := set(h.Excess), set(h.Inverse), flag(1-h.Cautious)
	avg, sq := s[0], s[1]
	for i := 0; i < len(p); i += lanes {
		d := at(g, i).Mul(sgn)
		m := lerp(*at(avg, i), d, c1)
		v := addcmul(at(sq, i).Mul(beta2), d, d, c2)
		*at(avg, i) = m
		*at(sq, i) = v
		update := masked(lerp(m, d, c1), d, inverse, always)
		*at(p, i) = addcdiv(at(p, i).Mul(decay), update, quotient(v.Sqrt(), bc2).Add(eps).Mul(excess), step)
	}
}

// NAdamWAgrees replaces p by the mask of the update.
func NAdamWAgrees(h *kernel.NAdamW, p, g []float32, s [4][]float32) {
	sgn, one := set(h.Sign), set(1).ToBits()
	c1 := weight{set(h.C1.W), flag(h.C1.FromX)}
	avg := s[0]
	for i := 0; i < len(p); i += lanes {
		d := at(g, i).Mul(sgn)
		*at(p, i) = agrees(lerp(lerp(*at(avg, i), d, c1), d, c1), d, one)
	}
}

// NAdamWQuotient replaces p by the gradient divided by the denominator.
func NAdamWQuotient(h *kernel.NAdamW, p, g []float32, s [4][]float32) {
	if h.BC2Sqrt.Extreme() {
		f32x1.NAdamWQuotient(h, p, g, s)
		return
	}
	sgn, beta2, c2 := set(h.Sign), set(h.Beta2), set(h.C2)
	bc2, eps := divisor{set(h.BC2Sqrt.By), set(-h.BC2Sqrt.By), set(h.BC2Sqrt.Recip), set(math.MaxFloat32)}, set(h.Eps)
	sq := s[1]
	for i := 0; i < len(p); i += lanes {
		d := at(g, i).Mul(sgn)
		v := addcmul(at(sq, i).Mul(beta2), d, d, c2)
		*at(p, i) = d.Div(quotient(v.Sqrt(), bc2).Add(eps))
	}
}
