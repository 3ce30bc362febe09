//go:build goexperiment.simd && amd64

package f32x8

import "github.com/goptim/goptim/goptim/internal/kernel"

// ADOPT applies one step of ADOPT to exp_avg and exp_avg_sq.
func ADOPT(h *kernel.ADOPT, p, g []float32, s [4][]float32) {
	if h.First != 0 {
		firstADOPT(h, p, g, s[1])
		return
	}
	if h.Cautious != 0 {
		cautiousADOPT(h, p, g, s)
		return
	}
	sgn, coupled, wd := set(h.Sign), flag(h.Couples), set(h.WeightDecay)
	decays, decay, eps, high, low := flag(h.Decays), set(h.Decay), set(h.Eps), set(h.Clip), set(-h.Clip)
	c1, beta2, c2, step := weight{set(h.C1.W), flag(h.C1.FromX)}, set(h.Beta2), set(h.C2), set(h.Step)
	avg, sq := s[0], s[1]
	for i := 0; i < len(p); i += lanes {
		x, v := *at(p, i), *at(sq, i)
		d := decayed(x, *at(g, i), sgn, coupled, wd)
		x = x.ToBits().And(decays).BitsToFloat32().MulAdd(decay, x)
		m := lerp(*at(avg, i), clamped(d.Div(maximum(v.Sqrt(), eps)), low, high), c1)
		*at(avg, i) = m
		*at(sq, i) = addcmul(v.Mul(beta2), d, d, c2)
		*at(p, i) = axpy(x, m, step)
	}
}

// firstADOPT is the first step: it only initializes exp_avg_sq.
func firstADOPT(h *kernel.ADOPT, p, g, sq []float32) {
	sgn, coupled, wd := set(h.Sign), flag(h.Couples), set(h.WeightDecay)
	for i := 0; i < len(p); i += lanes {
		d := decayed(*at(p, i), *at(g, i), sgn, coupled, wd)
		*at(sq, i) = d.MulAdd(d, *at(sq, i))
	}
}

// cautiousADOPT has a mask of the update.
func cautiousADOPT(h *kernel.ADOPT, p, g []float32, s [4][]float32) {
	sgn, coupled, wd := set(h.Sign), flag(h.Couples), set(h.WeightDecay)
	decays, decay, eps, high, low := flag(h.Decays), set(h.Decay), set(h.Eps), set(h.Clip), set(-h.Clip)
	c1, beta2, c2, step := weight{set(h.C1.W), flag(h.C1.FromX)}, set(h.Beta2), set(h.C2), set(h.Step)
	inverse, always := set(h.Inverse), flag(1-h.Cautious)
	avg, sq := s[0], s[1]
	for i := 0; i < len(p); i += lanes {
		x, v := *at(p, i), *at(sq, i)
		d := decayed(x, *at(g, i), sgn, coupled, wd)
		x = x.ToBits().And(decays).BitsToFloat32().MulAdd(decay, x)
		m := lerp(*at(avg, i), clamped(d.Div(maximum(v.Sqrt(), eps)), low, high), c1)
		*at(avg, i) = m
		*at(sq, i) = addcmul(v.Mul(beta2), d, d, c2)
		*at(p, i) = axpy(x, masked(m, d, inverse, always), step)
	}
}

// ADOPTAgrees replaces p by the mask of the update.
func ADOPTAgrees(h *kernel.ADOPT, p, g []float32, s [4][]float32) {
	sgn, coupled, wd := set(h.Sign), flag(h.Couples), set(h.WeightDecay)
	eps, high, low := set(h.Eps), set(h.Clip), set(-h.Clip)
	c1, one := weight{set(h.C1.W), flag(h.C1.FromX)}, set(1).ToBits()
	avg, sq := s[0], s[1]
	for i := 0; i < len(p); i += lanes {
		d := decayed(*at(p, i), *at(g, i), sgn, coupled, wd)
		m := lerp(*at(avg, i), clamped(d.Div(maximum(at(sq, i).Sqrt(), eps)), low, high), c1)
		*at(p, i) = agrees(m, d, one)
	}
}

// clamped is x.clamp(low, high). A NaN stays.
func clamped(x, low, high vector) vector {
	x = choose(above(low, x), low, x)
	return choose(above(x, high), high, x)
}
