//go:build goexperiment.simd && amd64

package f32x8

import (
	"github.com/goptim/goptim/goptim/internal/kernel"
)

// OptimiSGD applies one step of torch-optimi's SGD, with momentum if there is a state, the momentum buffer.
func OptimiSGD(h *kernel.OptimiSGD, p, g []float32, s [4][]float32) {
	switch {
	case s[0] == nil:
		plainOptimiSGD(h, p, g)
	case h.Averages != 0:
		averageOptimiSGD(h, p, g, s[0])
	default:
		momentumOptimiSGD(h, p, g, s[0])
	}
}

// plainOptimiSGD has no momentum.
func plainOptimiSGD(h *kernel.OptimiSGD, p, g []float32) {
	sgn, coupled, wd, decay, step := set(h.Sign), flag(h.Couples), set(h.WeightDecay), set(h.Decay), set(h.Step)
	for i := 0; i < len(p); i += lanes {
		x := *at(p, i)
		*at(p, i) = axpy(x.Mul(decay), decayed(x, *at(g, i), sgn, coupled, wd), step)
	}
}

// momentumOptimiSGD adds gradients to the buffer.
func momentumOptimiSGD(h *kernel.OptimiSGD, p, g, buf []float32) {
	sgn, coupled, wd, decay, step := set(h.Sign), flag(h.Couples), set(h.WeightDecay), set(h.Decay), set(h.Step)
	clears, momentum := flag(h.Clears), set(h.Momentum)
	for i := 0; i < len(p); i += lanes {
		x := *at(p, i)
		b := choose(clears, zeros(), *at(buf, i)).Mul(momentum).Add(decayed(x, *at(g, i), sgn, coupled, wd))
		*at(buf, i) = b
		*at(p, i) = axpy(x.Mul(decay), b, step)
	}
}

// averageOptimiSGD averages gradients.
func averageOptimiSGD(h *kernel.OptimiSGD, p, g, buf []float32) {
	sgn, coupled, wd, decay, step := set(h.Sign), flag(h.Couples), set(h.WeightDecay), set(h.Decay), set(h.Step)
	clears, starts, c := flag(h.Clears), flag(h.Starts), weight{set(h.C.W), flag(h.C.FromX)}
	for i := 0; i < len(p); i += lanes {
		x := *at(p, i)
		d := decayed(x, *at(g, i), sgn, coupled, wd)
		b := lerp(choose(starts, d, choose(clears, zeros(), *at(buf, i))), d, c)
		*at(buf, i) = b
		*at(p, i) = axpy(x.Mul(decay), b, step)
	}
}
