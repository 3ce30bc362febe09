//go:build goexperiment.simd && amd64

package f32x8

import (
	"math"

	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32x1"
)

// LAMB applies one step of LAMB to exp_avg and exp_avg_sq.
func LAMB(h *kernel.LAMB, p, g []float32, s [4][]float32) {
	if h.BC2Sqrt.Extreme() { // quotient does not support this
		f32x1.LAMB(h, p, g, s)
		return
	}
	total, beta1, beta2, c2, bc1 := set(h.Total), set(h.Beta1), set(h.Beta2), set(h.C2), set(h.BC1)
	averages, c1 := flag(h.Averages), weight{set(h.C1.W), flag(h.C1.FromX)}
	bc2, eps := divisor{set(h.BC2Sqrt.By), set(-h.BC2Sqrt.By), set(h.BC2Sqrt.Recip), set(math.MaxFloat32)}, set(h.Eps)
	inverse, always, couples, wd := set(h.Inverse), flag(1-h.Cautious), flag(h.Couples), set(h.WeightDecay)
	decays, decay, trust, step := flag(h.Decays), set(h.Decay), set(h.Trust), set(h.Step)
	avg, sq := s[0], s[1]
	for i := 0; i < len(p); i += lanes {
		x, d := *at(p, i), at(g, i).Div(total)
		m := momentum(*at(avg, i), d, averages, c1, beta1)
		v := addcmul(at(sq, i).Mul(beta2), d, d, c2)
		*at(avg, i) = m
		*at(sq, i) = v
		update := masked(m.Div(bc1).Div(quotient(v.Sqrt(), bc2).Add(eps)), d, inverse, always)
		update = choose(couples, axpy(update, x, wd), update)
		*at(p, i) = axpy(choose(decays, axpy(x, x, decay), x), update.Mul(trust), step)
	}
}

// LAMBAgrees replaces p by the mask of the update.
func LAMBAgrees(h *kernel.LAMB, p, g []float32, s [4][]float32) {
	if h.BC2Sqrt.Extreme() {
		f32x1.LAMBAgrees(h, p, g, s)
		return
	}
	total, beta1, beta2, c2, bc1 := set(h.Total), set(h.Beta1), set(h.Beta2), set(h.C2), set(h.BC1)
	averages, c1 := flag(h.Averages), weight{set(h.C1.W), flag(h.C1.FromX)}
	bc2, eps := divisor{set(h.BC2Sqrt.By), set(-h.BC2Sqrt.By), set(h.BC2Sqrt.Recip), set(math.MaxFloat32)}, set(h.Eps)
	one := set(1).ToBits()
	avg, sq := s[0], s[1]
	for i := 0; i < len(p); i += lanes {
		d := at(g, i).Div(total)
		m := momentum(*at(avg, i), d, averages, c1, beta1)
		v := addcmul(at(sq, i).Mul(beta2), d, d, c2)
		*at(p, i) = agrees(m.Div(bc1).Div(quotient(v.Sqrt(), bc2).Add(eps)), d, one)
	}
}

// LAMBUpdate replaces p by the update before it is scaled.
func LAMBUpdate(h *kernel.LAMB, p, g []float32, s [4][]float32) {
	if h.BC2Sqrt.Extreme() {
		f32x1.LAMBUpdate(h, p, g, s)
		return
	}
	total, beta1, beta2, c2, bc1 := set(h.Total), set(h.Beta1), set(h.Beta2), set(h.C2), set(h.BC1)
	averages, c1 := flag(h.Averages), weight{set(h.C1.W), flag(h.C1.FromX)}
	bc2, eps := divisor{set(h.BC2Sqrt.By), set(-h.BC2Sqrt.By), set(h.BC2Sqrt.Recip), set(math.MaxFloat32)}, set(h.Eps)
	inverse, always, couples, wd := set(h.Inverse), flag(1-h.Cautious), flag(h.Couples), set(h.WeightDecay)
	avg, sq := s[0], s[1]
	for i := 0; i < len(p); i += lanes {
		x, d := *at(p, i), at(g, i).Div(total)
		m := momentum(*at(avg, i), d, averages, c1, beta1)
		v := addcmul(at(sq, i).Mul(beta2), d, d, c2)
		update := masked(m.Div(bc1).Div(quotient(v.Sqrt(), bc2).Add(eps)), d, inverse, always)
		*at(p, i) = choose(couples, axpy(update, x, wd), update)
	}
}

// LAMBDecayed replaces p by itself after the decay.
func LAMBDecayed(h *kernel.LAMB, p, g []float32, s [4][]float32) {
	decay := set(h.Decay)
	for i := 0; i < len(p); i += lanes {
		x := *at(p, i)
		*at(p, i) = axpy(x, x, decay)
	}
}

// momentum, and the loop of LAMB, are You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes",
// arXiv:1904.00962, Algorithm 2, in the form of timm.
func momentum(m, g vector, averages bits, c1 weight, beta1 vector) vector {
	return choose(averages, lerp(m, g, c1), m.Mul(beta1).Add(g))
}
