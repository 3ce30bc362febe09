//go:build goexperiment.simd && amd64

package f32x8

import "github.com/goptim/goptim/goptim/internal/kernel"

// Adamax applies one step of Adamax to exp_avg and exp_inf.
func Adamax(h *kernel.Adamax, p, g []float32, s [4][]float32) {
	sgn, coupled, wd := set(h.Sign), flag(h.Couples), set(h.WeightDecay)
	c1, beta2, eps, step := weight{set(h.C1.W), flag(h.C1.FromX)}, set(h.Beta2), set(h.Eps), set(h.Step)
	m, u, sign := s[0], s[1], signs()
	for i := 0; i < len(p); i += lanes {
		x := *at(p, i)
		d := decayed(x, *at(g, i), sgn, coupled, wd)
		mi := lerp(*at(m, i), d, c1)
		ui := infinityNorm(*at(u, i), d, beta2, eps, sign)
		*at(m, i) = mi
		*at(u, i) = ui
		*at(p, i) = addcdiv(x, mi, ui, step)
	}
}

// infinityNorm is Kingma & Ba, arXiv:1412.6980, Algorithm 2, with torch's eps.
func infinityNorm(u, g, beta2, eps vector, sign bits) vector {
	return maximum(u.Mul(beta2), g.ToBits().AndNot(sign).BitsToFloat32().Add(eps))
}
