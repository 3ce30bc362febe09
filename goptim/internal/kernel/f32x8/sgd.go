//go:build goexperiment.simd && amd64

package f32x8

import (
	"math"

	"github.com/goptim/goptim/goptim/internal/kernel"
)

// SGD applies one step of SGD, with momentum if there is a state, the momentum buffer: Sutskever et al., "On the importance of
// initialization and momentum in deep learning", in torch's form. The learning rate multiplies the buffer, and the first buffer is the
// gradient, undampened.
func SGD(h *kernel.SGD, p, g []float32, s [4][]float32) {
	switch {
	case s[0] == nil:
		plainSGD(h, p, g)
	case math.Float64bits(h.First) == 0 && math.Float64bits(h.Nesterov) == 0:
		heavyBall(h, p, g, s[0])
	case math.Float64bits(h.First) == 0:
		nesterovSGD(h, p, g, s[0])
	case math.Float64bits(h.Couples) == 0:
		copySGD(h, p, g, s[0])
	default:
		firstSGD(h, p, g, s[0])
	}
}

// usualSGD has half of plainSGD's instructions. So a CPU looks twice as far ahead, and waits less for memory.
func usualSGD(h *kernel.SGD, p, g []float32) {
	step := set(h.Step)
	for i := 0; i < len(p); i += lanes {
		*at(p, i) = axpy(*at(p, i), *at(g, i), step)
	}
}

// plainSGD has no momentum. It is a separate function for the same reason as usualAdam.
func plainSGD(h *kernel.SGD, p, g []float32) {
	if h.Couples == 0 && h.Sign == 1 {
		usualSGD(h, p, g)
		return
	}
	sgn, coupled, wd, step := set(h.Sign), flag(h.Couples), set(h.WeightDecay), set(h.Step)
	for i := 0; i < len(p); i += lanes {
		x := *at(p, i)
		*at(p, i) = axpy(x, decayed(x, *at(g, i), sgn, coupled, wd), step)
	}
}

// nesterovSGD is a later step with Nesterov's momentum.
func nesterovSGD(h *kernel.SGD, p, g, buf []float32) {
	coupled := flag(h.Couples)
	sgn, wd, momentum, c, step := set(h.Sign), set(h.WeightDecay), set(h.Momentum), set(h.C), set(h.Step)
	for i := 0; i < len(p); i += lanes {
		x := *at(p, i)
		d := decayed(x, *at(g, i), sgn, coupled, wd)
		b := axpy(at(buf, i).Mul(momentum), d, c)
		*at(buf, i) = b
		*at(p, i) = axpy(x, axpy(d, b, momentum), step)
	}
}

// heavyBall is a later step with momentum that is not Nesterov's.
func heavyBall(h *kernel.SGD, p, g, buf []float32) {
	coupled := flag(h.Couples)
	sgn, wd, momentum, c, step := set(h.Sign), set(h.WeightDecay), set(h.Momentum), set(h.C), set(h.Step)
	for i := 0; i < len(p); i += lanes {
		x := *at(p, i)
		b := axpy(at(buf, i).Mul(momentum), decayed(x, *at(g, i), sgn, coupled, wd), c)
		*at(buf, i) = b
		*at(p, i) = axpy(x, b, step)
	}
}

// copySGD is the first step without weight decay: the buffer is a copy of the gradient, including subnormal numbers, which
// arithmetic may flush to zero.
func copySGD(h *kernel.SGD, p, g, buf []float32) {
	nesterov, flip := flag(h.Nesterov), set(h.Sign).ToBits().And(signs())
	momentum, step := set(h.Momentum), set(h.Step)
	for i := 0; i < len(p); i += lanes {
		b := at(g, i).ToBits().Xor(flip).BitsToFloat32()
		*at(buf, i) = quiet(b)
		*at(p, i) = axpy(*at(p, i), choose(nesterov, axpy(b, b, momentum), b), step)
	}
}

// firstSGD is the first step with weight decay.
func firstSGD(h *kernel.SGD, p, g, buf []float32) {
	coupled, nesterov := flag(h.Couples), flag(h.Nesterov)
	sgn, wd, momentum, step := set(h.Sign), set(h.WeightDecay), set(h.Momentum), set(h.Step)
	for i := 0; i < len(p); i += lanes {
		x := *at(p, i)
		b := decayed(x, *at(g, i), sgn, coupled, wd)
		*at(buf, i) = b
		*at(p, i) = axpy(x, choose(nesterov, axpy(b, b, momentum), b), step)
	}
}
