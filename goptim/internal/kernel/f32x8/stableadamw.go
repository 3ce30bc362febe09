//go:build goexperiment.simd && amd64

package f32x8

import "github.com/goptim/goptim/goptim/internal/kernel"

// StableAdamW applies one step of StableAdamW to exp_avg and exp_avg_sq.
func StableAdamW(h *kernel.StableAdamW, p, g []float32, s [4][]float32) {
	sgn, decay, beta2, c2, step := set(h.Sign), set(h.Decay), set(h.Beta2), set(h.C2), set(h.Step)
	c1, eps := weight{set(h.C1.W), flag(h.C1.FromX)}, set(h.Eps)
	avg, sq := s[0], s[1]
	for i := 0; i < len(p); i += lanes {
		d := at(g, i).Mul(sgn)
		m := lerp(*at(avg, i), d, c1)
		v := addcmul(at(sq, i).Mul(beta2), d, d, c2)
		*at(avg, i) = m
		*at(sq, i) = v
		*at(p, i) = addcdiv(at(p, i).Mul(decay), m, v.Sqrt().Add(eps), step)
	}
}

// StableAdamWSquares replaces p by the squares of the normalized gradient.
func StableAdamWSquares(h *kernel.StableAdamW, p, g []float32, s [4][]float32) {
	sgn, beta2, c2, least := set(h.Sign), set(h.Beta2), set(h.C2), set(h.EpsSq)
	sq := s[1]
	for i := 0; i < len(p); i += lanes {
		d := at(g, i).Mul(sgn)
		v := addcmul(at(sq, i).Mul(beta2), d, d, c2)
		*at(p, i) = d.Mul(again(d)).Div(maximum(v, least))
	}
}
