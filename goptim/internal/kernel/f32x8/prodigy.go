//go:build goexperiment.simd && amd64

package f32x8

import "github.com/goptim/goptim/goptim/internal/kernel"

// Prodigy applies one step of Prodigy with the new estimate of d to the parameter and the first two states: exp_avg, if there is one, and
// exp_avg_sq.
func Prodigy(h *kernel.Prodigy, p, g []float32, s [4][]float32) {
	sgn, coupled, wd, moves := set(h.Sign), flag(h.Couples), set(h.WeightDecay), flag(h.Estimates)
	beta1, c1, beta2, c2 := set(h.Beta1), set(h.C1), set(h.Beta2), set(h.C2)
	eps, step, decays, decay := set(h.Eps), set(h.Step), flag(h.Decays), set(h.Decay)
	avg, sq := s[0], s[1]
	for i := 0; i < len(p); i += lanes {
		x, v := *at(p, i), *at(sq, i)
		d := decayed(x, *at(g, i), sgn, coupled, wd)
		v = choose(moves, addcmul(v.Mul(beta2), d, d, c2), quiet(v))
		y, root := choose(decays, axpy(x, x, decay), x), v.Sqrt().Add(eps)
		*at(sq, i) = v
		if avg != nil {
			m := *at(avg, i)
			m = choose(moves, axpy(m.Mul(beta1), d, c1), quiet(m))
			*at(avg, i) = m
			*at(p, i) = addcdiv(y, m, root, step)
		} else {
			*at(p, i) = addcdiv(y, d, root, step)
		}
	}
}

// ProdigyMoments updates exp_avg, if there is one, and exp_avg_sq, but not the parameter.
func ProdigyMoments(h *kernel.Prodigy, p, g []float32, s [4][]float32) {
	sgn, coupled, wd := set(h.Sign), flag(h.Couples), set(h.WeightDecay)
	beta1, c1, beta2, c2 := set(h.Beta1), set(h.C1), set(h.Beta2), set(h.C2)
	avg, sq := s[0], s[1]
	for i := 0; i < len(p); i += lanes {
		d := decayed(*at(p, i), *at(g, i), sgn, coupled, wd)
		if avg != nil {
			*at(avg, i) = axpy(at(avg, i).Mul(beta1), d, c1)
		}
		*at(sq, i) = addcmul(at(sq, i).Mul(beta2), d, d, c2)
	}
}

// ProdigyDistance is Mishchenko & Defazio, "Prodigy: An Expeditiously Adaptive Parameter-Free Learner", arXiv:2306.06101,
// Algorithm 4: the state s, the first one, becomes an average of gradients. The buffer p gets the terms of the product of the gradient
// and the distance of the parameter, the fourth state, from p0, the second one. The third one gets the magnitudes of s.
func ProdigyDistance(h *kernel.Prodigy, p, g []float32, s [4][]float32) {
	sgn, coupled, wd, beta3, c3 := set(h.Sign), flag(h.Couples), set(h.WeightDecay), set(h.Beta3), set(h.C3)
	sum, start, size, param := s[0], s[1], s[2], s[3]
	for i := 0; i < len(p); i += lanes {
		x := *at(param, i)
		d := decayed(x, *at(g, i), sgn, coupled, wd)
		t := axpy(at(sum, i).Mul(beta3), d, c3)
		*at(sum, i) = t
		*at(size, i) = abs(t)
		*at(p, i) = d.Mul(at(start, i).Sub(x))
	}
}
