//go:build goexperiment.simd && amd64

package f32x8

import "github.com/goptim/goptim/goptim/internal/kernel"

// RMSpropTFLike applies one step of RMSpropTFLike to square_avg, to momentum_buffer if there is a second state, and to grad_avg if
// there is a third one (centered).
func RMSpropTFLike(h *kernel.RMSpropTFLike, p, g []float32, s [4][]float32) {
	sgn, coupled, wd := set(h.Sign), flag(h.Couples), set(h.WeightDecay)
	alpha, c, eps, minus, momentum, step := set(h.Alpha), set(h.C), set(h.Eps), set(-1), set(h.Momentum), set(h.Step)
	sq, buf, avg := s[0], s[1], s[2]
	for i := 0; i < len(p); i += lanes {
		x := *at(p, i)
		d := decayed(x, *at(g, i), sgn, coupled, wd)
		v := addcmul(at(sq, i).Mul(alpha), d, d, c)
		*at(sq, i) = v
		if avg != nil {
			a := axpy(at(avg, i).Mul(alpha), d, c)
			*at(avg, i) = a
			v = variance(v, a, minus)
		}
		root := v.Add(eps).Sqrt()
		if buf == nil {
			*at(p, i) = addcdiv(x, d, root, step)
		} else {
			b := at(buf, i).Mul(momentum).Add(d.Div(root))
			*at(buf, i) = b
			*at(p, i) = axpy(x, b, step)
		}
	}
}
