//go:build goexperiment.simd && amd64

package f32x8

import (
	"math"

	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32x1"
)

// Adam applies one step of Adam or AdamW to exp_avg and exp_avg_sq, and of AMSGrad if there is a third state,
// max_exp_avg_sq.
func Adam(h *kernel.Adam, p, g []float32, s [4][]float32) {
	if h.BC2Sqrt.Extreme() { // quotient does not support this
		f32x1.Adam(h, p, g, s)
		return
	}
	if s[2] == nil && h.Couples == 0 && h.C1.FromX != 0 {
		usualAdam(h, p, g, s)
		return
	}
	// Each scalar is a separate variable, which stays in a register. Fields of a struct would be in memory.
	sgn, coupled, wd, decay := set(h.Sign), flag(h.Couples), set(h.WeightDecay), set(h.Decay)
	c1, beta2, c2, step := weight{set(h.C1.W), flag(h.C1.FromX)}, set(h.Beta2), set(h.C2), set(h.Step)
	bc2, eps := divisor{set(h.BC2Sqrt.By), set(-h.BC2Sqrt.By), set(h.BC2Sqrt.Recip), set(math.MaxFloat32)}, set(h.Eps)
	m, v, vmax := s[0], s[1], s[2]
	if vmax != nil {
		for i := 0; i < len(p); i += lanes {
			x := *at(p, i)
			mi, vi := moments(x, *at(g, i), *at(m, i), *at(v, i), sgn, coupled, wd, c1, beta2, c2)
			xi := maximum(*at(vmax, i), vi)
			*at(m, i) = mi
			*at(v, i) = vi
			*at(vmax, i) = xi
			*at(p, i) = adamStep(x, mi, xi, decay, step, bc2, eps)
		}
		return
	}
	for i := 0; i < len(p); i += lanes {
		x := *at(p, i)
		mi, vi := moments(x, *at(g, i), *at(m, i), *at(v, i), sgn, coupled, wd, c1, beta2, c2)
		*at(m, i) = mi
		*at(v, i) = vi
		*at(p, i) = adamStep(x, mi, vi, decay, step, bc2, eps)
	}
}

// usualAdam has so few scalars that all stay in registers, which doubles its speed in cache. It is a separate function because
// otherwise the compiler converts scalars after the branch, with SSE, which costs about 50 ns after an AVX instruction.
func usualAdam(h *kernel.Adam, p, g []float32, s [4][]float32) {
	sgn, decay, c1, beta2, c2, step := set(h.Sign), set(h.Decay), set(h.C1.W), set(h.Beta2), set(h.C2), set(h.Step)
	bc2, eps := divisor{set(h.BC2Sqrt.By), set(-h.BC2Sqrt.By), set(h.BC2Sqrt.Recip), set(math.MaxFloat32)}, set(h.Eps)
	m, v := s[0], s[1]
	for i := 0; i < len(p); i += lanes {
		gi := at(g, i).Mul(sgn)
		mi := axpy(*at(m, i), gi.Sub(*at(m, i)), c1)
		vi := addcmul(at(v, i).Mul(beta2), gi, gi, c2)
		*at(m, i) = mi
		*at(v, i) = vi
		*at(p, i) = adamStep(*at(p, i), mi, vi, decay, step, bc2, eps)
	}
}

// moments and adamStep are Kingma & Ba, arXiv:1412.6980, Algorithm 1; with decay, Loshchilov & Hutter,
// arXiv:1711.05101, Algorithm 2; with the maximum between them, Reddi, Kale & Kumar, "On the Convergence of Adam and
// Beyond", Algorithm 2 (AMSGrad). One line per torch operation.

func moments(p, g, m, v, sign vector, coupled bits, wd vector, c1 weight, beta2, c2 vector) (_, _ vector) {
	g = decayed(p, g, sign, coupled, wd)
	m = lerp(m, g, c1)
	v = addcmul(v.Mul(beta2), g, g, c2)
	return m, v
}

func adamStep(p, m, v, decay, step vector, bc2 divisor, eps vector) vector {
	denom := quotient(v.Sqrt(), bc2).Add(eps)
	return addcdiv(p.Mul(decay), m, denom, step)
}
