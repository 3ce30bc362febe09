//go:build goexperiment.simd

package f32

import (
	"simd"

	lane "github.com/goptim/goptim/goptim/internal/kernel/lane/f32"
)

// SGD holds the scalars of one step of SGD, in float64 as the user gave them.
type SGD struct {
	Maximize    bool
	WeightDecay float64
	Momentum    float64
	C           float64 // 1 - dampening
	Nesterov    bool
	Step        float64 // -lr
}

// UpdateSGD applies one step to columns of one length, which may be any. buf is nil without momentum; first says
// that it holds nothing yet.
func UpdateSGD(h *SGD, p, g, buf []float32, first bool) {
	if simd.Emulated() { // its MulAdd rounds twice
		lane.UpdateSGD((*lane.SGD)(h), p, g, buf, first)
		return
	}
	k := sgd{h.WeightDecay != 0, h.Nesterov, first}
	sgn, wd, momentum, c, step := sign(h.Maximize), set(h.WeightDecay), set(h.Momentum), set(h.C), set(h.Step)
	w := step.Len()
	if buf != nil {
		for len(p) >= w && len(g) >= w && len(buf) >= w {
			pi, bi := k.updateMomentum(simd.LoadFloat32s(p), simd.LoadFloat32s(g), simd.LoadFloat32s(buf), sgn, wd, momentum, c, step)
			pi.Store(p)
			bi.Store(buf)
			p, g, buf = p[w:], g[w:], buf[w:]
		}
		if len(p) > 0 {
			pi, bi := k.updateMomentum(loadPart(p), loadPart(g), loadPart(buf), sgn, wd, momentum, c, step)
			storePart(p, pi)
			storePart(buf, bi)
		}
		return
	}
	for len(p) >= w && len(g) >= w {
		k.update(simd.LoadFloat32s(p), simd.LoadFloat32s(g), sgn, wd, step).Store(p)
		p, g = p[w:], g[w:]
	}
	if len(p) > 0 {
		storePart(p, k.update(loadPart(p), loadPart(g), sgn, wd, step))
	}
}

// sgd is what an update needs beside the scalars, which have every lane filled.
type sgd struct{ coupled, nesterov, first bool }

func (k sgd) update(p, g, sign, wd, step simd.Float32s) simd.Float32s {
	return axpy(p, k.gradient(p, g, sign, wd), step)
}

// updateMomentum is Sutskever et al., "On the importance of initialization and momentum in deep learning", in
// torch's form: the learning rate multiplies the buffer, and the first buffer is the gradient, undampened.
func (k sgd) updateMomentum(p, g, buf, sign, wd, momentum, c, step simd.Float32s) (_, _ simd.Float32s) {
	g = k.gradient(p, g, sign, wd)
	if k.first {
		buf = g
	} else {
		buf = axpy(buf.Mul(momentum), g, c)
	}
	if k.nesterov {
		g = axpy(g, buf, momentum)
	} else {
		g = buf
	}
	return axpy(p, g, step), buf
}

func (k sgd) gradient(p, g, sign, wd simd.Float32s) simd.Float32s {
	g = g.Mul(sign)
	if k.coupled {
		g = axpy(g, p, wd)
	}
	return g
}
