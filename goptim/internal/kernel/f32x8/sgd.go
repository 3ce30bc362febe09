//go:build goexperiment.simd && amd64

package f32x8

import (
	"math"

	"github.com/goptim/goptim/goptim/internal/kernel"
)

// SGD applies one step of SGD, with momentum if there is a state, the momentum buffer.
func SGD(h *kernel.SGD, p, g []float32, s [3][]float32) {
	if s[0] == nil {
		plainSGD(h, p, g)
		return
	}
	if math.Float64bits(h.First) != 0 && math.Float64bits(h.Couples) == 0 {
		copySGD(h, p, g, s[0])
		return
	}
	coupled, nesterov, first := flag(h.Couples), flag(h.Nesterov), flag(h.First)
	sgn, wd, momentum, c, step := set(h.Sign), set(h.WeightDecay), set(h.Momentum), set(h.C), set(h.Step)
	buf := s[0]
	for i := 0; i < len(p); i += lanes {
		x := *at(p, i)
		d := decayed(x, *at(g, i), sgn, coupled, wd)
		b := momentumOf(*at(buf, i), d, first, momentum, c)
		*at(buf, i) = b
		d = choose(nesterov, axpy(d, b, momentum), b)
		*at(p, i) = axpy(x, d, step)
	}
}

// plainSGD has no momentum. It is a separate function for the same reason as usualAdam.
func plainSGD(h *kernel.SGD, p, g []float32) {
	sgn, coupled, wd, step := set(h.Sign), flag(h.Couples), set(h.WeightDecay), set(h.Step)
	for i := 0; i < len(p); i += lanes {
		x := *at(p, i)
		*at(p, i) = axpy(x, decayed(x, *at(g, i), sgn, coupled, wd), step)
	}
}

// copySGD is the first step without weight decay: the buffer is a copy of the gradient, including subnormal numbers, which
// arithmetic may flush to zero.
func copySGD(h *kernel.SGD, p, g, buf []float32) {
	nesterov, flip := flag(h.Nesterov), set(h.Sign).ToBits().And(signs())
	momentum, step := set(h.Momentum), set(h.Step)
	for i := 0; i < len(p); i += lanes {
		b := at(g, i).ToBits().Xor(flip).BitsToFloat32()
		*at(buf, i) = b
		*at(p, i) = axpy(*at(p, i), choose(nesterov, axpy(b, b, momentum), b), step)
	}
}

// momentumOf is Sutskever et al., "On the importance of initialization and momentum in deep learning", in torch's form:
// the learning rate multiplies the buffer, and the first buffer is the gradient, undampened.
func momentumOf(buf, g vector, first bits, momentum, c vector) vector {
	return choose(first, g, axpy(buf.Mul(momentum), g, c))
}
