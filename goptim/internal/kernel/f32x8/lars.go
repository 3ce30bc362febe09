//go:build goexperiment.simd && amd64

package f32x8

import "github.com/goptim/goptim/goptim/internal/kernel"

// LARS applies one step of LARS, with momentum if there is a state, the momentum buffer.
func LARS(h *kernel.LARS, p, g []float32, s [4][]float32) {
	if s[0] == nil {
		plainLARS(h, p, g)
		return
	}
	adapts, nesterov, first := flag(h.Adapts), flag(h.Nesterov), flag(h.First)
	wd, trust, momentum, c, step := set(h.WeightDecay), set(h.Trust), set(h.Momentum), set(h.C), set(h.Step)
	buf := s[0]
	for i := 0; i < len(p); i += lanes {
		x := *at(p, i)
		d := adapted(x, *at(g, i), adapts, wd, trust)
		b := momentumOf(*at(buf, i), d, first, momentum, c)
		*at(buf, i) = quiet(b)
		*at(p, i) = axpy(x, choose(nesterov, axpy(d, b, momentum), b), step)
	}
}

// plainLARS has no momentum. It is a separate function for the same reason as usualAdam.
func plainLARS(h *kernel.LARS, p, g []float32) {
	adapts, wd, trust, step := flag(h.Adapts), set(h.WeightDecay), set(h.Trust), set(h.Step)
	for i := 0; i < len(p); i += lanes {
		x := *at(p, i)
		*at(p, i) = axpy(x, adapted(x, *at(g, i), adapts, wd, trust), step)
	}
}

// adapted is You, Gitman & Ginsburg, "Large Batch Training of Convolutional Networks", arXiv:1708.03888, Algorithm 1, before the
// momentum.
func adapted(p, g vector, adapts bits, wd, trust vector) vector {
	return choose(adapts, axpy(g, p, wd).Mul(trust), g)
}
