//go:build goexperiment.simd

package f32

import (
	"simd"

	lane "github.com/goptim/goptim/goptim/internal/kernel/lane/f32"
)

// Adam holds the scalars of one step of Adam or AdamW, derived in float64 from the hyperparameters and t.
type Adam struct {
	Maximize    bool
	WeightDecay float64 // coupled: added to the gradient; 0 where there is none
	Decay       float64 // decoupled: 1 - lr*weight_decay; 1 where there is none
	C1          float64 // 1 - beta1
	Beta2, C2   float64 // beta2, 1 - beta2
	Step        float64 // -lr / (1 - beta1^t)
	BC2Sqrt     float64 // sqrt(1 - beta2^t)
	Eps         float64
}

// UpdateAdam applies one step to columns of one length, which may be any. vmax is nil without amsgrad.
func UpdateAdam(h *Adam, p, g, m, v, vmax []float32) {
	if simd.Emulated() { // its MulAdd rounds twice
		lane.UpdateAdam((*lane.Adam)(h), p, g, m, v, vmax)
		return
	}
	var k adam // filled field by field: a composite literal of vectors is built aside and copied
	k.sign, k.wd, k.coupled, k.decay = sign(h.Maximize), set(h.WeightDecay), h.WeightDecay != 0, set(h.Decay)
	k.c1, k.beta2, k.c2 = newWeight(h.C1), set(h.Beta2), set(h.C2)
	k.step, k.bc2, k.eps = set(h.Step), set(h.BC2Sqrt), set(h.Eps)
	w := k.eps.Len()
	if vmax != nil {
		for len(p) >= w && len(g) >= w && len(m) >= w && len(v) >= w && len(vmax) >= w {
			pi, mi, vi, xi := k.updateMax(simd.LoadFloat32s(p), simd.LoadFloat32s(g), simd.LoadFloat32s(m), simd.LoadFloat32s(v), simd.LoadFloat32s(vmax))
			pi.Store(p)
			mi.Store(m)
			vi.Store(v)
			xi.Store(vmax)
			p, g, m, v, vmax = p[w:], g[w:], m[w:], v[w:], vmax[w:]
		}
		if len(p) > 0 {
			pi, mi, vi, xi := k.updateMax(loadPart(p), loadPart(g), loadPart(m), loadPart(v), loadPart(vmax))
			storePart(p, pi)
			storePart(m, mi)
			storePart(v, vi)
			storePart(vmax, xi)
		}
		return
	}
	for len(p) >= w && len(g) >= w && len(m) >= w && len(v) >= w {
		pi, mi, vi := k.update(simd.LoadFloat32s(p), simd.LoadFloat32s(g), simd.LoadFloat32s(m), simd.LoadFloat32s(v))
		pi.Store(p)
		mi.Store(m)
		vi.Store(v)
		p, g, m, v = p[w:], g[w:], m[w:], v[w:]
	}
	if len(p) > 0 {
		pi, mi, vi := k.update(loadPart(p), loadPart(g), loadPart(m), loadPart(v))
		storePart(p, pi)
		storePart(m, mi)
		storePart(v, vi)
	}
}

// adam is Adam with every scalar in every lane.
type adam struct {
	sign, wd                  simd.Float32s
	coupled                   bool
	decay                     simd.Float32s
	c1                        weight
	beta2, c2, step, bc2, eps simd.Float32s
}

// update is Kingma & Ba, arXiv:1412.6980, Algorithm 1; with decay, Loshchilov & Hutter, arXiv:1711.05101,
// Algorithm 2. One line a torch operation.
func (k *adam) update(p, g, m, v simd.Float32s) (_, _, _ simd.Float32s) {
	m, v = k.moments(p, g, m, v)
	return k.move(p, m, v), m, v
}

// updateMax is Reddi, Kale & Kumar, "On the Convergence of Adam and Beyond", Algorithm 2 (AMSGrad).
func (k *adam) updateMax(p, g, m, v, vmax simd.Float32s) (_, _, _, _ simd.Float32s) {
	m, v = k.moments(p, g, m, v)
	vmax = maximum(vmax, v)
	return k.move(p, m, vmax), m, v, vmax
}

func (k *adam) moments(p, g, m, v simd.Float32s) (_, _ simd.Float32s) {
	g = g.Mul(k.sign)
	if k.coupled {
		g = axpy(g, p, k.wd)
	}
	m = lerp(m, g, k.c1)
	v = addcmul(v.Mul(k.beta2), g, g, k.c2)
	return m, v
}

func (k *adam) move(p, m, v simd.Float32s) simd.Float32s {
	denom := v.Sqrt().Div(k.bc2).Add(k.eps)
	return addcdiv(p.Mul(k.decay), m, denom, k.step)
}
