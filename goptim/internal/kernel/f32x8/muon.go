//go:build goexperiment.simd && amd64

package f32x8

import "github.com/goptim/goptim/goptim/internal/kernel"

// MuonMomentum moves the momentum, a state, towards the gradient, and writes the update before orthogonalization to p.
func MuonMomentum(h *kernel.MuonMomentum, p, g []float32, s [4][]float32) {
	c, momentum, nesterov := weight{set(h.C.W), flag(h.C.FromX)}, weight{set(h.Momentum.W), flag(h.Momentum.FromX)}, flag(h.Nesterov)
	buf := s[0]
	for i := 0; i < len(p); i += lanes {
		gi := *at(g, i)
		b := lerp(*at(buf, i), gi, c)
		*at(buf, i) = b
		*at(p, i) = choose(nesterov, lerp(gi, b, momentum), b)
	}
}

// MuonUpdate applies weight decay and the orthogonalized update g to the parameter.
func MuonUpdate(h *kernel.MuonUpdate, p, g []float32, s [4][]float32) {
	decay, step := set(h.Decay), set(h.Step)
	for i := 0; i < len(p); i += lanes {
		*at(p, i) = moved(*at(p, i), *at(g, i), decay, step)
	}
}

func moved(p, update, decay, step vector) vector {
	return axpy(p.Mul(decay), update, step)
}

// AuxAdam applies one step of the Adam half of MuonWithAuxAdam to exp_avg and exp_avg_sq.
func AuxAdam(h *kernel.AuxAdam, p, g []float32, s [4][]float32) {
	decay, step, bc1, bc2, eps := set(h.Decay), set(h.Step), set(h.BC1), set(h.BC2), set(h.Eps)
	c1, c2 := weight{set(h.C1.W), flag(h.C1.FromX)}, weight{set(h.C2.W), flag(h.C2.FromX)}
	avg, sq := s[0], s[1]
	for i := 0; i < len(p); i += lanes {
		d := *at(g, i)
		m, v := lerp(*at(avg, i), d, c1), lerp(*at(sq, i), d.Mul(d), c2)
		*at(avg, i) = m
		*at(sq, i) = v
		update := m.Div(bc1).Div(v.Div(bc2).Sqrt().Add(eps))
		*at(p, i) = moved(*at(p, i), update, decay, step)
	}
}

// Combine adds four vectors to p, each with a factor: a part of a row of a matrix product.
func Combine(h *kernel.Combine, p, g []float32, s [4][]float32) {
	a0, a1, a2, a3 := set(h.A[0]), set(h.A[1]), set(h.A[2]), set(h.A[3])
	s0, s1, s2 := s[0], s[1], s[2]
	for i := 0; i < len(p); i += lanes {
		x := at(g, i).MulAdd(a0, *at(p, i))
		x = at(s0, i).MulAdd(a1, x)
		x = at(s1, i).MulAdd(a2, x)
		*at(p, i) = at(s2, i).MulAdd(a3, x)
	}
}
