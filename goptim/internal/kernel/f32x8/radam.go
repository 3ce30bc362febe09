//go:build goexperiment.simd && amd64

package f32x8

import (
	"math"

	"github.com/goptim/goptim/goptim/internal/kernel"
)

// RAdam applies one step of RAdam to exp_avg and exp_avg_sq.
func RAdam(h *kernel.RAdam, p, g []float32, s [4][]float32) {
	sgn, coupled, wd, decay := set(h.Sign), flag(h.Couples), set(h.WeightDecay), set(h.Decay)
	c1, beta2, c2 := weight{set(h.C1.W), flag(h.C1.FromX)}, set(h.Beta2), set(h.C2)
	one, bc1, lr, bc2, eps, rect := set(1), set(h.BC1), set(h.LR), set(h.BC2Sqrt), set(h.Eps), set(h.Rect)
	rectifies := math.Float64bits(h.Rectified) != 0 // comparing a float in the loop would mix SSE and AVX: up to twenty times slower
	m, v := s[0], s[1]
	for i := 0; i < len(p); i += lanes {
		x := *at(p, i)
		mi, vi := moments(x, *at(g, i), *at(m, i), *at(v, i), sgn, coupled, wd, c1, beta2, c2)
		*at(m, i) = mi
		*at(v, i) = vi
		update := mi.Div(bc1).Mul(lr)
		if rectifies {
			update = rectified(update, vi, one, bc2, eps, rect)
		}
		*at(p, i) = x.Mul(decay).Sub(update)
	}
}

// rectified is the adaptive part of Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond",
// arXiv:1908.03265, Algorithm 2. torch divides a number by a tensor as the tensor's reciprocal times the number.
func rectified(update, v, one, bc2, eps, rect vector) vector {
	adaptive := one.Div(v.Sqrt().Add(eps)).Mul(bc2)
	return update.Mul(adaptive).Mul(rect)
}
