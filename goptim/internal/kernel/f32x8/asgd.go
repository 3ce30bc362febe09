//go:build goexperiment.simd && amd64

package f32x8

import "github.com/goptim/goptim/goptim/internal/kernel"

// ASGD applies one step of averaged SGD to ax, the third state.
func ASGD(h *kernel.ASGD, p, g []float32, s [4][]float32) {
	if h.Averages == 0 {
		copyASGD(h, p, g, s[2])
		return
	}
	sgn, coupled, wd := set(h.Sign), flag(h.Couples), set(h.WeightDecay)
	decay, step, mu := set(h.Decay), set(h.Step), set(h.Mu)
	ax := s[2]
	for i := 0; i < len(p); i += lanes {
		x := *at(p, i)
		x = axpy(x.Mul(decay), decayed(x, *at(g, i), sgn, coupled, wd), step)
		*at(p, i) = x
		*at(ax, i) = average(*at(ax, i), x, mu)
	}
}

// copyASGD is a step before averaging begins: ax is the parameter.
func copyASGD(h *kernel.ASGD, p, g, ax []float32) {
	sgn, coupled, wd, decay, step := set(h.Sign), flag(h.Couples), set(h.WeightDecay), set(h.Decay), set(h.Step)
	for i := 0; i < len(p); i += lanes {
		x := *at(p, i)
		x = axpy(x.Mul(decay), decayed(x, *at(g, i), sgn, coupled, wd), step)
		*at(p, i) = x
		*at(ax, i) = x
	}
}

// average is Polyak & Juditsky, "Acceleration of Stochastic Approximation by Averaging", SIAM J. Control Optim. 30 (1992).
func average(ax, p, mu vector) vector { return ax.Add(p.Sub(ax).Mul(mu)) }
