//go:build goexperiment.simd && amd64

package f32x8

import "github.com/goptim/goptim/goptim/internal/kernel"

// Shazeer & Stern, arXiv:1804.04235, Algorithms 4 and 5, as Hugging Face's transformers compute them.

// HFAdafactorSquares writes the squares of the gradient plus eps1 to p.
func HFAdafactorSquares(h *kernel.HFAdafactor, p, g []float32, s [4][]float32) {
	eps := set(h.Eps1)
	for i := 0; i < len(p); i += lanes {
		*at(p, i) = squareAbove(*at(g, i), eps)
	}
}

// HFAdafactorMoment moves exp_avg_sq_row or exp_avg_sq_col (p) towards the means g.
func HFAdafactorMoment(h *kernel.HFAdafactor, p, g []float32, s [4][]float32) {
	beta2, c := set(h.Beta2), set(h.C2)
	for i := 0; i < len(p); i += lanes {
		*at(p, i) = axpy(at(p, i).Mul(beta2), *at(g, i), c)
	}
}

// HFAdafactorFactor writes the reciprocal square roots of g / h.Mean to p.
func HFAdafactorFactor(h *kernel.HFAdafactor, p, g []float32, s [4][]float32) {
	mean, one := set(h.Mean), set(1)
	for i := 0; i < len(p); i += lanes {
		*at(p, i) = one.Div(at(g, i).Div(mean).Sqrt())
	}
}

// HFAdafactorRow writes the unclipped update of a row to p, from its gradient, its factor and those of the columns.
func HFAdafactorRow(h *kernel.HFAdafactor, p, g []float32, s [4][]float32) {
	row, col := set(h.Row), s[0]
	for i := 0; i < len(p); i += lanes {
		*at(p, i) = row.Mul(*at(col, i)).Mul(*at(g, i))
	}
}

// HFAdafactorVector writes the unclipped update of a vector to p, and updates its exp_avg_sq.
func HFAdafactorVector(h *kernel.HFAdafactor, p, g []float32, s [4][]float32) {
	eps, beta2, c, one := set(h.Eps1), set(h.Beta2), set(h.C2), set(1)
	square := s[0]
	for i := 0; i < len(p); i += lanes {
		v := axpy(at(square, i).Mul(beta2), squareAbove(*at(g, i), eps), c)
		*at(square, i) = v
		*at(p, i) = one.Div(v.Sqrt()).Mul(*at(g, i))
	}
}

// HFAdafactorStep subtracts the update g from the parameter, or the average of updates if there is a state exp_avg.
func HFAdafactorStep(h *kernel.HFAdafactor, p, g []float32, s [4][]float32) {
	clip, lr, decays, decay := set(h.Clip), set(h.LR), flag(h.Decays), set(h.Decay)
	beta1, c := set(h.Beta1), set(h.C1)
	m := s[0]
	for i := 0; i < len(p); i += lanes {
		u := at(g, i).Div(clip).Mul(lr)
		if m != nil {
			u = axpy(at(m, i).Mul(beta1), u, c)
			*at(m, i) = u
		}
		x := *at(p, i)
		*at(p, i) = choose(decays, axpy(x, x, decay), x).Sub(u)
	}
}

func squareAbove(g, eps vector) vector { return g.Mul(g).Add(eps) }
