//go:build goexperiment.simd && !wasm

package f32

import (
	"simd"

	"github.com/goptim/goptim/goptim/internal/kernel"
	lane "github.com/goptim/goptim/goptim/internal/kernel/lane/f32"
)

// Rprop applies one step of Rprop to prev and step_size.
func Rprop(h *kernel.Rprop, p, g []float32, s [3][]float32) {
	if simd.Emulated() { // emulation rounds MulAdd twice
		lane.Rprop(h, p, g, s)
		return
	}
	sgn, zero, one, minus := set(h.Sign), set(0), set(1), set(-1)
	etaMinus, etaPlus, low, high := set(h.EtaMinus), set(h.EtaPlus), set(h.Min), set(h.Max)
	prev, size, w := s[0], s[1], zero.Len()
	for i := 0; i < len(p); i += w {
		d := at(g, i).Mul(sgn)
		turned := signOf(d.Mul(*at(prev, i)), zero, one, minus)
		factor := etaPlus.IfElse(turned.Greater(zero), etaMinus.IfElse(zero.Greater(turned), one))
		z := clamp(at(size, i).Mul(factor), low, high)
		d = zero.IfElse(factor.Equal(etaMinus), d)
		*at(size, i) = z
		*at(prev, i) = d
		*at(p, i) = addcmul(*at(p, i), signOf(d, zero, one, minus), z, minus)
	}
}

// signOf is 1, -1, or 0 for a zero and for a NaN.
func signOf(x, zero, one, minus simd.Float32s) simd.Float32s {
	return one.IfElse(x.Greater(zero), minus.IfElse(zero.Greater(x), zero))
}

// clamp keeps a NaN.
func clamp(x, low, high simd.Float32s) simd.Float32s {
	x = low.IfElse(low.Greater(x), x)
	return high.IfElse(x.Greater(high), x)
}
