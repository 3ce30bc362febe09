//go:build goexperiment.simd && !wasm && !amd64

package f32

import (
	"simd"

	"github.com/goptim/goptim/goptim/internal/kernel"
	lane "github.com/goptim/goptim/goptim/internal/kernel/lane/f32"
)

// Adamax applies one step of Adamax to exp_avg and exp_inf.
func Adamax(h *kernel.Adamax, p, g []float32, s [3][]float32) {
	if simd.Emulated() { // emulation rounds MulAdd twice
		lane.Adamax(h, p, g, s)
		return
	}
	sgn, coupled, wd := set(h.Sign), flag(h.Couples), set(h.WeightDecay)
	c1, beta2, eps, step := weight{set(h.C1.W), flag(h.C1.FromX)}, set(h.Beta2), set(h.Eps), set(h.Step)
	m, u, w := s[0], s[1], eps.Len()
	for i := 0; i < len(p); i += w {
		x := *at(p, i)
		d := decayed(x, *at(g, i), sgn, coupled, wd)
		mi := lerp(*at(m, i), d, c1)
		ui := infinityNorm(*at(u, i), d, beta2, eps)
		*at(m, i) = mi
		*at(u, i) = ui
		*at(p, i) = addcdiv(x, mi, ui, step)
	}
}

// infinityNorm is Kingma & Ba, arXiv:1412.6980, Algorithm 2, with torch's eps.
func infinityNorm(u, g, beta2, eps simd.Float32s) simd.Float32s {
	return maximum(u.Mul(beta2), abs(g).Add(eps))
}
