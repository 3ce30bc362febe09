//go:build goexperiment.simd && amd64

package f32x8

import "github.com/goptim/goptim/goptim/internal/kernel"

// SparseSGD applies one step of SGD, without weight decay and momentum, to every part.
func SparseSGD(h *kernel.SGD, p []float32, s [4][]float32, parts []kernel.Part[float32], n int) {
	sgn, step := set(h.Sign), set(h.Step)
	for _, r := range parts {
		for i := 0; i < n; i += lanes {
			*at(p, r.At+i) = axpy(*at(p, r.At+i), at(r.Grad, i).Mul(sgn), step)
		}
	}
}

// SparseAdagrad applies one step of Adagrad, without weight decay, to every part and its sum.
func SparseAdagrad(h *kernel.Adagrad, p []float32, s [4][]float32, parts []kernel.Part[float32], n int) {
	sgn, step, eps := set(h.Sign), set(h.Step), set(h.Eps)
	sum := s[0]
	for _, r := range parts {
		for i := 0; i < n; i += lanes {
			d := at(r.Grad, i).Mul(sgn)
			v := at(sum, r.At+i).Add(d.Mul(d))
			*at(sum, r.At+i) = v
			*at(p, r.At+i) = axpy(*at(p, r.At+i), d.Div(v.Sqrt().Add(eps)), step)
		}
	}
}

// SparseAdam applies one step of lazy Adam to every part and its exp_avg and exp_avg_sq.
func SparseAdam(h *kernel.SparseAdam, p []float32, s [4][]float32, parts []kernel.Part[float32], n int) {
	sgn, c1, c2, eps, step := set(h.Sign), set(h.C1), set(h.C2), set(h.Eps), set(h.Step)
	m, v := s[0], s[1]
	for _, r := range parts {
		for i := 0; i < n; i += lanes {
			d := at(r.Grad, i).Mul(sgn)
			mi := toward(*at(m, r.At+i), d, c1)
			vi := toward(*at(v, r.At+i), d.Mul(d), c2)
			*at(m, r.At+i) = mi
			*at(v, r.At+i) = vi
			*at(p, r.At+i) = at(p, r.At+i).Add(mi.Div(vi.Sqrt().Add(eps)).Mul(step))
		}
	}
}

// toward moves an average towards x and rounds each operation, as torch does on the values of sparse tensors.
func toward(avg, x, c vector) vector { return x.Sub(avg).Mul(c).Add(avg) }

// Accumulate adds the gradient of every part to p.
func Accumulate(h *kernel.None, p []float32, s [4][]float32, parts []kernel.Part[float32], n int) {
	for _, r := range parts {
		for i := 0; i < n; i += lanes {
			*at(p, r.At+i) = at(p, r.At+i).Add(*at(r.Grad, i))
		}
	}
}
