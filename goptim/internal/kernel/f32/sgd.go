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
	var k sgd
	k.sign, k.wd, k.coupled = sign(h.Maximize), set(h.WeightDecay), h.WeightDecay != 0
	k.momentum, k.c, k.nesterov, k.first, k.step = set(h.Momentum), set(h.C), h.Nesterov, first, set(h.Step)
	w := k.step.Len()
	if buf != nil {
		for len(p) >= w && len(g) >= w && len(buf) >= w {
			pi, bi := k.updateMomentum(simd.LoadFloat32s(p), simd.LoadFloat32s(g), simd.LoadFloat32s(buf))
			pi.Store(p)
			bi.Store(buf)
			p, g, buf = p[w:], g[w:], buf[w:]
		}
		if len(p) > 0 {
			pi, bi := k.updateMomentum(loadPart(p), loadPart(g), loadPart(buf))
			storePart(p, pi)
			storePart(buf, bi)
		}
		return
	}
	for len(p) >= w && len(g) >= w {
		k.update(simd.LoadFloat32s(p), simd.LoadFloat32s(g)).Store(p)
		p, g = p[w:], g[w:]
	}
	if len(p) > 0 {
		storePart(p, k.update(loadPart(p), loadPart(g)))
	}
}

// sgd is SGD with every scalar in every lane.
type sgd struct {
	sign, wd        simd.Float32s
	coupled         bool
	momentum, c     simd.Float32s
	nesterov, first bool
	step            simd.Float32s
}

func (k *sgd) update(p, g simd.Float32s) simd.Float32s {
	return axpy(p, k.gradient(p, g), k.step)
}

// updateMomentum is Sutskever et al., "On the importance of initialization and momentum in deep learning", in
// torch's form: the learning rate multiplies the buffer, and the first buffer is the gradient, undampened.
func (k *sgd) updateMomentum(p, g, buf simd.Float32s) (_, _ simd.Float32s) {
	g = k.gradient(p, g)
	if k.first {
		buf = g
	} else {
		buf = axpy(buf.Mul(k.momentum), g, k.c)
	}
	if k.nesterov {
		g = axpy(g, buf, k.momentum)
	} else {
		g = buf
	}
	return axpy(p, g, k.step), buf
}

func (k *sgd) gradient(p, g simd.Float32s) simd.Float32s {
	g = g.Mul(k.sign)
	if k.coupled {
		g = axpy(g, p, k.wd)
	}
	return g
}
