//go:build goexperiment.simd

package f32

import (
	"simd"

	"github.com/goptim/goptim/goptim/internal/kernel"
	lane "github.com/goptim/goptim/goptim/internal/kernel/lane/f32"
)

// SparseAdagrad applies one step of Adagrad to sum, with a sparse gradient, without weight decay.
func SparseAdagrad(h *kernel.Adagrad, p, g []float32, s [3][]float32) {
	if simd.Emulated() { // emulation rounds MulAdd twice
		lane.SparseAdagrad(h, p, g, s)
		return
	}
	sgn, step, eps := set(h.Sign), set(h.Step), set(h.Eps)
	sum, w := s[0], eps.Len()
	for i := 0; i < len(p); i += w {
		d := at(g, i).Mul(sgn)
		v := at(sum, i).Add(d.Mul(d))
		*at(sum, i) = v
		*at(p, i) = axpy(*at(p, i), adagradDirection(d, v, eps), step)
	}
}

// adagradDirection is adagradStep's, with operations rounded one by one: torch does them on the values of sparse tensors.
func adagradDirection(g, sum, eps simd.Float32s) simd.Float32s { return g.Div(sum.Sqrt().Add(eps)) }
