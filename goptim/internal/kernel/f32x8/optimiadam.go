//go:build goexperiment.simd && amd64

package f32x8

import (
	"math"

	"github.com/goptim/goptim/goptim/internal/kernel"
)

// OptimiAdam applies one step of torch-optimi's Adam, AdamW or RAdam to exp_avg and exp_avg_sq.
func OptimiAdam(h *kernel.OptimiAdam, p, g []float32, s [4][]float32) {
	sgn, coupled, wd, decay := set(h.Sign), flag(h.Couples), set(h.WeightDecay), set(h.Decay)
	c1, beta2, c2 := weight{set(h.C1.W), flag(h.C1.FromX)}, set(h.Beta2), set(h.C2)
	eps, step := set(h.Eps), set(h.Step)
	normalizes := math.Float64bits(h.Normalizes) != 0 // see RAdam
	m, v := s[0], s[1]
	for i := 0; i < len(p); i += lanes {
		x := *at(p, i)
		mi, vi := moments(x, *at(g, i), *at(m, i), *at(v, i), sgn, coupled, wd, c1, beta2, c2)
		*at(m, i) = mi
		*at(v, i) = vi
		if x = x.Mul(decay); normalizes {
			x = addcdiv(x, mi, vi.Sqrt().Add(eps), step)
		} else {
			x = axpy(x, mi, step)
		}
		*at(p, i) = x
	}
}
