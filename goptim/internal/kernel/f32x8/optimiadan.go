//go:build goexperiment.simd && amd64

package f32x8

import (
	"github.com/goptim/goptim/goptim/internal/kernel"
)

// OptimiAdan applies one step of torch-optimi's Adan to exp_avg, exp_avg_sq, exp_avg_diff and prev_grad.
func OptimiAdan(h *kernel.OptimiAdan, p, g []float32, s [4][]float32) {
	sgn, first, shrink := set(h.Sign), flag(h.First), set(h.Shrink)
	c1, c2 := weight{set(h.C1.W), flag(h.C1.FromX)}, weight{set(h.C2.W), flag(h.C2.FromX)}
	beta2, beta3, c3, eps := set(h.Beta2), set(h.Beta3), set(h.C3), set(h.Eps)
	step, stepDiff, minus := set(h.Step), set(h.StepDiff), set(-1)
	avg, sq, dif, pre := s[0], s[1], s[2], s[3]
	for i := 0; i < len(p); i += lanes {
		d := at(g, i).Mul(sgn)
		change := choose(first, neg(d), *at(pre, i)).Add(d)
		m := lerp(*at(avg, i), d, c1)
		f := lerp(*at(dif, i), change, c2)
		u := change.Mul(beta2).Add(d)
		v := addcmul(at(sq, i).Mul(beta3), u, u, c3)
		*at(avg, i) = m
		*at(dif, i) = f
		*at(sq, i) = v
		*at(pre, i) = d.Mul(minus)
		root := v.Sqrt().Add(eps)
		x := addcdiv(*at(p, i), m, root, step)
		*at(p, i) = addcdiv(x, f, root, stepDiff).Div(shrink)
	}
}
