//go:build goexperiment.simd && amd64

package f32x8

import "github.com/goptim/goptim/goptim/internal/kernel"

// Adagrad applies one step of Adagrad to sum.
func Adagrad(h *kernel.Adagrad, p, g []float32, s [4][]float32) {
	sgn, coupled, wd := set(h.Sign), flag(h.Couples), set(h.WeightDecay)
	one, step, eps := set(1), set(h.Step), set(h.Eps)
	sum := s[0]
	for i := 0; i < len(p); i += lanes {
		x := *at(p, i)
		d := decayed(x, *at(g, i), sgn, coupled, wd)
		v := addcmul(*at(sum, i), d, d, one)
		*at(sum, i) = v
		*at(p, i) = adagradStep(x, d, v, step, eps)
	}
}

// adagradStep is Duchi, Hazan & Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization",
// JMLR 12 (2011), with a diagonal matrix.
func adagradStep(p, g, sum, step, eps vector) vector {
	return addcdiv(p, g, sum.Sqrt().Add(eps), step)
}
