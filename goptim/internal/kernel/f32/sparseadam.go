//go:build goexperiment.simd

package f32

import (
	"simd"

	"github.com/goptim/goptim/goptim/internal/kernel"
	lane "github.com/goptim/goptim/goptim/internal/kernel/lane/f32"
)

// SparseAdam applies one step of lazy Adam to exp_avg and exp_avg_sq.
func SparseAdam(h *kernel.SparseAdam, p, g []float32, s [3][]float32) {
	if simd.Emulated() { // emulation rounds MulAdd twice
		lane.SparseAdam(h, p, g, s)
		return
	}
	sgn, c1, c2, eps, step := set(h.Sign), set(h.C1), set(h.C2), set(h.Eps), set(h.Step)
	m, v, w := s[0], s[1], eps.Len()
	for i := 0; i < len(p); i += w {
		d := at(g, i).Mul(sgn)
		mi := toward(*at(m, i), d, c1)
		vi := toward(*at(v, i), d.Mul(d), c2)
		*at(m, i) = mi
		*at(v, i) = vi
		*at(p, i) = at(p, i).Add(mi.Div(vi.Sqrt().Add(eps)).Mul(step))
	}
}

// toward moves an average to x, each operation rounded: torch does it on the values of sparse tensors.
func toward(avg, x, c simd.Float32s) simd.Float32s { return x.Sub(avg).Mul(c).Add(avg) }
