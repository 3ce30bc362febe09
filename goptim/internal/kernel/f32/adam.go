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
	// Each scalar is a variable of its own, which stays in a register; as fields of a struct all would be in memory.
	k := adam{newWeight(h.C1), h.WeightDecay != 0}
	sgn, wd, decay := sign(h.Maximize), set(h.WeightDecay), set(h.Decay)
	beta2, c2, step, bc2, eps := set(h.Beta2), set(h.C2), set(h.Step), set(h.BC2Sqrt), set(h.Eps)
	w := eps.Len()
	if vmax != nil {
		for len(p) >= w && len(g) >= w && len(m) >= w && len(v) >= w && len(vmax) >= w {
			pi, mi, vi, xi := k.updateMax(simd.LoadFloat32s(p), simd.LoadFloat32s(g), simd.LoadFloat32s(m), simd.LoadFloat32s(v), simd.LoadFloat32s(vmax), sgn, wd, decay, beta2, c2, step, bc2, eps)
			pi.Store(p)
			mi.Store(m)
			vi.Store(v)
			xi.Store(vmax)
			p, g, m, v, vmax = p[w:], g[w:], m[w:], v[w:], vmax[w:]
		}
		if len(p) > 0 {
			pi, mi, vi, xi := k.updateMax(loadPart(p), loadPart(g), loadPart(m), loadPart(v), loadPart(vmax), sgn, wd, decay, beta2, c2, step, bc2, eps)
			storePart(p, pi)
			storePart(m, mi)
			storePart(v, vi)
			storePart(vmax, xi)
		}
		return
	}
	for len(p) >= w && len(g) >= w && len(m) >= w && len(v) >= w {
		pi, mi, vi := k.update(simd.LoadFloat32s(p), simd.LoadFloat32s(g), simd.LoadFloat32s(m), simd.LoadFloat32s(v), sgn, wd, decay, beta2, c2, step, bc2, eps)
		pi.Store(p)
		mi.Store(m)
		vi.Store(v)
		p, g, m, v = p[w:], g[w:], m[w:], v[w:]
	}
	if len(p) > 0 {
		pi, mi, vi := k.update(loadPart(p), loadPart(g), loadPart(m), loadPart(v), sgn, wd, decay, beta2, c2, step, bc2, eps)
		storePart(p, pi)
		storePart(m, mi)
		storePart(v, vi)
	}
}

// adam is what an update needs beside the scalars, which have every lane filled.
type adam struct {
	c1      weight
	coupled bool
}

// update is Kingma & Ba, arXiv:1412.6980, Algorithm 1; with decay, Loshchilov & Hutter, arXiv:1711.05101,
// Algorithm 2. One line a torch operation.
func (k adam) update(p, g, m, v, sign, wd, decay, beta2, c2, step, bc2, eps simd.Float32s) (_, _, _ simd.Float32s) {
	m, v = k.moments(p, g, m, v, sign, wd, beta2, c2)
	return move(p, m, v, decay, step, bc2, eps), m, v
}

// updateMax is Reddi, Kale & Kumar, "On the Convergence of Adam and Beyond", Algorithm 2 (AMSGrad).
func (k adam) updateMax(p, g, m, v, vmax, sign, wd, decay, beta2, c2, step, bc2, eps simd.Float32s) (_, _, _, _ simd.Float32s) {
	m, v = k.moments(p, g, m, v, sign, wd, beta2, c2)
	vmax = maximum(vmax, v)
	return move(p, m, vmax, decay, step, bc2, eps), m, v, vmax
}

func (k adam) moments(p, g, m, v, sign, wd, beta2, c2 simd.Float32s) (_, _ simd.Float32s) {
	g = g.Mul(sign)
	if k.coupled {
		g = axpy(g, p, wd)
	}
	m = lerp(m, g, k.c1)
	v = addcmul(v.Mul(beta2), g, g, c2)
	return m, v
}

func move(p, m, v, decay, step, bc2, eps simd.Float32s) simd.Float32s {
	denom := v.Sqrt().Div(bc2).Add(eps)
	return addcdiv(p.Mul(decay), m, denom, step)
}
