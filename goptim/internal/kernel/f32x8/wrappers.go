//go:build goexperiment.simd && amd64

package f32x8

import "github.com/goptim/goptim/goptim/internal/kernel"

// Lookahead moves the slow weights, a state, towards the parameter, and copies them to it.
func Lookahead(h *kernel.Lookahead, p, g []float32, s [4][]float32) {
	alpha, slow := set(h.Alpha), s[0]
	for i := 0; i < len(p); i += lanes {
		x := *at(slow, i)
		x = axpy(x, at(p, i).Sub(x), alpha)
		*at(slow, i) = x
		*at(p, i) = x
	}
}

// SAM copies the parameter to a state, and moves it in the direction of the gradient.
func SAM(h *kernel.SAM, p, g []float32, s [4][]float32) {
	scale, adaptive, one, old := set(h.Scale), flag(h.Adaptive), set(1), s[0]
	for i := 0; i < len(p); i += lanes {
		x := *at(p, i)
		*at(old, i) = quiet(x)
		*at(p, i) = x.Add(choose(adaptive, x.Mul(x), one).Mul(*at(g, i)).Mul(scale))
	}
}
