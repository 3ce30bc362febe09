//go:build goexperiment.simd && amd64

package f32x8

import (
	"math"

	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32x1"
)

// Adan applies one step of Adan to exp_avg, exp_avg_sq, exp_avg_diff and neg_pre_grad.
func Adan(h *kernel.Adan, p, g []float32, s [4][]float32) {
	if h.BC3Sqrt.Extreme() { // quotient does not support this
		f32x1.Adan(h, p, g, s)
		return
	}
	if h.Cautious != 0 {
		cautiousAdan(h, p, g, s)
		return
	}
	sgn, first, decay, shrink := set(h.Sign), flag(h.First), set(h.Decay), set(h.Shrink)
	c1, beta2, c2 := weight{set(h.C1.W), flag(h.C1.FromX)}, set(h.Beta2), set(h.C2)
	beta3, c3, step, stepDiff, minus := set(h.Beta3), set(h.C3), set(h.Step), set(h.StepDiff), set(-1)
	bc3, eps := divisor{set(h.BC3Sqrt.By), set(-h.BC3Sqrt.By), set(h.BC3Sqrt.Recip), set(math.MaxFloat32)}, set(h.Eps)
	avg, sq, dif, pre := s[0], s[1], s[2], s[3]
	for i := 0; i < len(p); i += lanes {
		d := at(g, i).Mul(sgn)
		change := choose(first, neg(d), *at(pre, i)).Add(d)
		m := lerp(*at(avg, i), d, c1)
		f := axpy(at(dif, i).Mul(beta2), change, c2)
		u := change.Mul(beta2).Add(d)
		v := addcmul(at(sq, i).Mul(beta3), u, u, c3)
		*at(avg, i) = m
		*at(dif, i) = f
		*at(sq, i) = v
		*at(pre, i) = axpy(zeros(), d, minus)
		root := quotient(v.Sqrt(), bc3).Add(eps)
		x := addcdiv(at(p, i).Mul(decay), m, root, step)
		*at(p, i) = addcdiv(x, f, root, stepDiff).Div(shrink)
	}
}

// cautiousAdan has a mask of the average of gradients.
func cautiousAdan(h *kernel.Adan, p, g []float32, s [4][]float32) {
	sgn, first, decay, shrink := set(h.Sign), flag(h.First), set(h.Decay), set(h.Shrink)
	c1, beta2, c2 := weight{set(h.C1.W), flag(h.C1.FromX)}, set(h.Beta2), set(h.C2)
	beta3, c3, step, stepDiff, minus := set(h.Beta3), set(h.C3), set(h.Step), set(h.StepDiff), set(-1)
	bc3, eps := divisor{set(h.BC3Sqrt.By), set(-h.BC3Sqrt.By), set(h.BC3Sqrt.Recip), set(math.MaxFloat32)}, set(h.Eps)
	inverse, always := set(h.Inverse), flag(1-h.Cautious)
	avg, sq, dif, pre := s[0], s[1], s[2], s[3]
	for i := 0; i < len(p); i += lanes {
		d := at(g, i).Mul(sgn)
		change := choose(first, neg(d), *at(pre, i)).Add(d)
		m := lerp(*at(avg, i), d, c1)
		f := axpy(at(dif, i).Mul(beta2), change, c2)
		u := change.Mul(beta2).Add(d)
		v := addcmul(at(sq, i).Mul(beta3), u, u, c3)
		*at(avg, i) = m
		*at(dif, i) = f
		*at(sq, i) = v
		*at(pre, i) = axpy(zeros(), d, minus)
		root := quotient(v.Sqrt(), bc3).Add(eps)
		x := addcdiv(at(p, i).Mul(decay), masked(m, d, inverse, always), root, step)
		*at(p, i) = addcdiv(x, f, root, stepDiff).Div(shrink)
	}
}

// AdanAgrees replaces p by the mask of the average of gradients.
func AdanAgrees(h *kernel.Adan, p, g []float32, s [4][]float32) {
	sgn, c1, one := set(h.Sign), weight{set(h.C1.W), flag(h.C1.FromX)}, set(1).ToBits()
	avg := s[0]
	for i := 0; i < len(p); i += lanes {
		d := at(g, i).Mul(sgn)
		*at(p, i) = agrees(lerp(*at(avg, i), d, c1), d, one)
	}
}
