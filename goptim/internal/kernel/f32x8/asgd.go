//go:build goexperiment.simd && amd64

package f32x8

import "github.com/goptim/goptim/goptim/internal/kernel"

// ASGD applies one step of averaged SGD to ax, the third state.
func ASGD(h *kernel.ASGD, p, g []float32, s [3][]float32) {
	sgn, coupled, wd := set(h.Sign), flag(h.Couples), set(h.WeightDecay)
	decay, step, mu, averages := set(h.Decay), set(h.Step), set(h.Mu), flag(h.Averages)
	ax := s[2]
	for i := 0; i < len(p); i += lanes {
		x := *at(p, i)
		x = axpy(x.Mul(decay), decayed(x, *at(g, i), sgn, coupled, wd), step)
		*at(p, i) = x
		*at(ax, i) = choose(averages, average(*at(ax, i), x, mu), x)
	}
}

// average is Polyak & Juditsky, "Acceleration of Stochastic Approximation by Averaging", SIAM J. Control Optim. 30 (1992).
func average(ax, p, mu vector) vector { return ax.Add(p.Sub(ax).Mul(mu)) }
