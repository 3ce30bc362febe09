//go:build goexperiment.simd && amd64

package f32x8

import "github.com/goptim/goptim/goptim/internal/kernel"

// LaProp applies one step of LaProp to exp_avg and exp_avg_sq, the last two states.
func LaProp(h *kernel.LaProp, p, g []float32, s [4][]float32) {
	if h.Cautious != 0 {
		cautiousLaProp(h, p, g, s)
		return
	}
	sgn, beta1, c1, beta2, c2 := set(h.Sign), set(h.Beta1), set(h.C1), set(h.Beta2), set(h.C2)
	bc2, eps, step, decays, decay := set(h.BC2), set(h.Eps), set(h.Step), flag(h.Decays), set(h.Decay)
	avg, sq := s[2], s[3]
	for i := 0; i < len(p); i += lanes {
		d := at(g, i).Mul(sgn)
		v := addcmul(at(sq, i).Mul(beta2), d, d, c2)
		m := axpy(at(avg, i).Mul(beta1), d.Div(v.Div(bc2).Sqrt().Add(eps)), c1)
		*at(sq, i) = v
		*at(avg, i) = m
		x := axpy(*at(p, i), m, step)
		*at(p, i) = x.ToBits().And(decays).BitsToFloat32().MulAdd(decay, x)
	}
}

// cautiousLaProp has a mask of the update.
func cautiousLaProp(h *kernel.LaProp, p, g []float32, s [4][]float32) {
	sgn, beta1, c1, beta2, c2 := set(h.Sign), set(h.Beta1), set(h.C1), set(h.Beta2), set(h.C2)
	bc2, eps, step, decays, decay := set(h.BC2), set(h.Eps), set(h.Step), flag(h.Decays), set(h.Decay)
	inverse, always := set(h.Inverse), flag(1-h.Cautious)
	avg, sq := s[2], s[3]
	for i := 0; i < len(p); i += lanes {
		d := at(g, i).Mul(sgn)
		v := addcmul(at(sq, i).Mul(beta2), d, d, c2)
		m := axpy(at(avg, i).Mul(beta1), d.Div(v.Div(bc2).Sqrt().Add(eps)), c1)
		*at(sq, i) = v
		*at(avg, i) = m
		x := axpy(*at(p, i), masked(m, d, inverse, always), step)
		*at(p, i) = x.ToBits().And(decays).BitsToFloat32().MulAdd(decay, x)
	}
}

// LaPropAgrees replaces p by the mask of the update.
func LaPropAgrees(h *kernel.LaProp, p, g []float32, s [4][]float32) {
	sgn, beta1, c1, beta2, c2 := set(h.Sign), set(h.Beta1), set(h.C1), set(h.Beta2), set(h.C2)
	bc2, eps, one := set(h.BC2), set(h.Eps), set(1).ToBits()
	avg, sq := s[2], s[3]
	for i := 0; i < len(p); i += lanes {
		d := at(g, i).Mul(sgn)
		v := addcmul(at(sq, i).Mul(beta2), d, d, c2)
		m := axpy(at(avg, i).Mul(beta1), d.Div(v.Div(bc2).Sqrt().Add(eps)), c1)
		*at(p, i) = agrees(m, d, one)
	}
}
