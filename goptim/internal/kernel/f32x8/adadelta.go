//go:build goexperiment.simd && amd64

package f32x8

import "github.com/goptim/goptim/goptim/internal/kernel"

// Adadelta applies one step of Adadelta to square_avg and acc_delta.
func Adadelta(h *kernel.Adadelta, p, g []float32, s [4][]float32) {
	sgn, coupled, wd := set(h.Sign), flag(h.Couples), set(h.WeightDecay)
	rho, c, eps, step := set(h.Rho), set(h.C), set(h.Eps), set(h.Step)
	sq, acc := s[0], s[1]
	for i := 0; i < len(p); i += lanes {
		x, a := *at(p, i), *at(acc, i)
		d := decayed(x, *at(g, i), sgn, coupled, wd)
		v := addcmul(at(sq, i).Mul(rho), d, d, c)
		delta := adadeltaStep(d, v, a, eps)
		*at(sq, i) = v
		*at(acc, i) = addcmul(a.Mul(rho), delta, delta, c)
		*at(p, i) = axpy(x, delta, step)
	}
}

// adadeltaStep is Zeiler, "ADADELTA: An Adaptive Learning Rate Method", arXiv:1212.5701, Algorithm 1, line 5.
func adadeltaStep(g, sq, acc, eps vector) vector {
	return acc.Add(eps).Sqrt().Div(sq.Add(eps).Sqrt()).Mul(g)
}
