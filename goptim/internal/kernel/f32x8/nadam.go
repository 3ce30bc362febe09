//go:build goexperiment.simd && amd64

package f32x8

import "github.com/goptim/goptim/goptim/internal/kernel"

// NAdam applies one step of NAdam to exp_avg and exp_avg_sq, the second and third state.
func NAdam(h *kernel.NAdam, p, g []float32, s [4][]float32) {
	sgn, coupled, wd, decay := set(h.Sign), flag(h.Couples), set(h.WeightDecay), set(h.Decay)
	c1, beta2, c2 := weight{set(h.C1.W), flag(h.C1.FromX)}, set(h.Beta2), set(h.C2)
	bc2, eps, stepG, stepM := set(h.BC2), set(h.Eps), set(h.StepG), set(h.StepM)
	m, v := s[1], s[2]
	for i := 0; i < len(p); i += lanes {
		x := *at(p, i)
		d := decayed(x, *at(g, i), sgn, coupled, wd)
		mi := lerp(*at(m, i), d, c1)
		vi := addcmul(at(v, i).Mul(beta2), d, d, c2)
		*at(m, i) = mi
		*at(v, i) = vi
		*at(p, i) = nadamStep(x.Mul(decay), d, mi, vi, bc2, eps, stepG, stepM)
	}
}

// nadamStep is Dozat, "Incorporating Nesterov Momentum into Adam", ICLR 2016 workshop, Algorithm 2, in two parts.
func nadamStep(p, g, m, v, bc2, eps, stepG, stepM vector) vector {
	denom := v.Div(bc2).Sqrt().Add(eps)
	p = addcdiv(p, g, denom, stepG)
	return addcdiv(p, m, denom, stepM)
}
