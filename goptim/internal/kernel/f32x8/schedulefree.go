//go:build goexperiment.simd && amd64

package f32x8

import (
	"math"

	"github.com/goptim/goptim/goptim/internal/kernel"
)

// ScheduleFree applies one step of AdamWScheduleFree or RAdamScheduleFree to z and exp_avg_sq. The parameter is y of Defazio et
// al., "The Road Less Scheduled", arXiv:2405.15682, Algorithm 1.
func ScheduleFree(h *kernel.ScheduleFree, p, g []float32, s [4][]float32) {
	beta2, c2, bc2, eps := set(h.Beta2), set(h.C2), set(h.BC2), set(h.Eps)
	coupled, wd := flag(h.Couples), set(h.WeightDecay)
	ck, step, minus := weight{set(h.CK.W), flag(h.CK.FromX)}, set(h.Step), set(h.Minus)
	normalizes := math.Float64bits(h.Normalizes) != 0 // see RAdam
	z, v := s[0], s[1]
	for i := 0; i < len(p); i += lanes {
		x, d, zi := *at(p, i), *at(g, i), *at(z, i)
		vi := addcmul(at(v, i).Mul(beta2), d, d, c2)
		*at(v, i) = vi
		if normalizes {
			d = d.Div(vi.Div(bc2).Sqrt().Add(eps))
		}
		d = withDecay(x, d, coupled, wd)
		*at(p, i) = axpy(lerp(x, zi, ck), d, step)
		*at(z, i) = axpy(zi, d, minus)
	}
}

// SGDScheduleFree applies one step of SGDScheduleFree to z.
func SGDScheduleFree(h *kernel.SGDScheduleFree, p, g []float32, s [4][]float32) {
	coupled, wd := flag(h.Couples), set(h.WeightDecay)
	ck, step, minus := weight{set(h.CK.W), flag(h.CK.FromX)}, set(h.Step), set(h.Minus)
	z := s[0]
	for i := 0; i < len(p); i += lanes {
		x, zi := *at(p, i), *at(z, i)
		d := withDecay(x, *at(g, i), coupled, wd)
		*at(p, i) = axpy(lerp(x, zi, ck), d, step)
		*at(z, i) = axpy(zi, d, minus)
	}
}

// withDecay is decayed without a sign.
func withDecay(p, g vector, coupled bits, wd vector) vector {
	return p.ToBits().And(coupled).BitsToFloat32().MulAdd(wd, g)
}
