//go:build goexperiment.simd && amd64

package f32x8

import (
	"math"

	"github.com/goptim/goptim/goptim/internal/kernel"
)

// SGDW applies one step of SGDW, with momentum if there is a state, the momentum buffer.
func SGDW(h *kernel.SGDW, p, g []float32, s [4][]float32) {
	if s[0] == nil {
		plainSGDW(h, p, g)
		return
	}
	if h.Cautious != 0 {
		cautiousSGDW(h, p, g, s[0])
		return
	}
	if math.Float64bits(h.First) == 0 {
		laterSGDW(h, p, g, s[0])
		return
	}
	nesterov, flip := flag(h.Nesterov), set(h.Sign).ToBits().And(signs()) // the first buffer is a copy, without arithmetic: see copySGD
	decay, momentum, step := set(h.Decay), set(h.Momentum), set(h.Step)
	buf := s[0]
	for i := 0; i < len(p); i += lanes {
		b := at(g, i).ToBits().Xor(flip).BitsToFloat32()
		*at(buf, i) = quiet(b)
		*at(p, i) = axpy(at(p, i).Mul(decay), choose(nesterov, axpy(b, b, momentum), b), step)
	}
}

// laterSGDW is a later step with momentum.
func laterSGDW(h *kernel.SGDW, p, g, buf []float32) {
	nesterov := flag(h.Nesterov)
	sgn, decay, momentum, c, step := set(h.Sign), set(h.Decay), set(h.Momentum), set(h.C), set(h.Step)
	for i := 0; i < len(p); i += lanes {
		d := at(g, i).Mul(sgn)
		b := axpy(at(buf, i).Mul(momentum), d, c)
		*at(buf, i) = b
		*at(p, i) = axpy(at(p, i).Mul(decay), choose(nesterov, axpy(d, b, momentum), b), step)
	}
}

// plainSGDW has no momentum. It is a separate function for the same reason as usualAdam.
func plainSGDW(h *kernel.SGDW, p, g []float32) {
	sgn, decay, step := set(h.Sign), set(h.Decay), set(h.Step)
	for i := 0; i < len(p); i += lanes {
		*at(p, i) = axpy(at(p, i).Mul(decay), at(g, i).Mul(sgn), step)
	}
}

// cautiousSGDW has a mask of the update.
func cautiousSGDW(h *kernel.SGDW, p, g, buf []float32) {
	nesterov, first, always := flag(h.Nesterov), flag(h.First), flag(1-h.Cautious)
	sgn, decay, momentum, c, step, inverse := set(h.Sign), set(h.Decay), set(h.Momentum), set(h.C), set(h.Step), set(h.Inverse)
	flip := sgn.ToBits().And(signs())
	for i := 0; i < len(p); i += lanes {
		d := choose(first, at(g, i).ToBits().Xor(flip).BitsToFloat32(), at(g, i).Mul(sgn))
		b := momentumOf(*at(buf, i), d, first, momentum, c)
		*at(buf, i) = quiet(b)
		*at(p, i) = axpy(at(p, i).Mul(decay), masked(choose(nesterov, axpy(d, b, momentum), b), d, inverse, always), step)
	}
}

// SGDWAgrees replaces p by the mask of the update.
func SGDWAgrees(h *kernel.SGDW, p, g []float32, s [4][]float32) {
	nesterov, first := flag(h.Nesterov), flag(h.First)
	sgn, momentum, c, one := set(h.Sign), set(h.Momentum), set(h.C), set(1).ToBits()
	buf := s[0]
	for i := 0; i < len(p); i += lanes {
		d := at(g, i).Mul(sgn)
		b := momentumOf(*at(buf, i), d, first, momentum, c)
		*at(p, i) = agrees(choose(nesterov, axpy(d, b, momentum), b), d, one)
	}
}

// momentumOf is Sutskever et al., "On the importance of initialization and momentum in deep learning", in torch's form:
// the learning rate multiplies the buffer, and the first buffer is the gradient, undampened.
func momentumOf(buf, g vector, first bits, momentum, c vector) vector {
	return choose(first, g, axpy(buf.Mul(momentum), g, c))
}
