//go:build goexperiment.simd && amd64

package f32x8

import "github.com/goptim/goptim/goptim/internal/kernel"

// RMSprop applies one step of RMSprop to square_avg, to momentum_buffer if there is a second state, and to grad_avg if there is
// a third one (centered).
func RMSprop(h *kernel.RMSprop, p, g []float32, s [4][]float32) {
	if s[1] != nil && s[2] != nil && h.Couples == 0 && h.Centre.FromX != 0 {
		centred(h, p, g, s)
		return
	}
	sgn, coupled, wd := set(h.Sign), flag(h.Couples), set(h.WeightDecay)
	alpha, c, centre, eps := set(h.Alpha), set(h.C), weight{set(h.Centre.W), flag(h.Centre.FromX)}, set(h.Eps)
	minus, momentum, step := set(-1), set(h.Momentum), set(h.Step)
	sq, buf, avg := s[0], s[1], s[2]
	for i := 0; i < len(p); i += lanes {
		x := *at(p, i)
		d := decayed(x, *at(g, i), sgn, coupled, wd)
		v := addcmul(at(sq, i).Mul(alpha), d, d, c)
		*at(sq, i) = v
		if avg != nil {
			a := lerp(*at(avg, i), d, centre)
			*at(avg, i) = a
			v = variance(v, a, minus)
		}
		root := v.Sqrt().Add(eps)
		if buf == nil {
			*at(p, i) = addcdiv(x, d, root, step)
		} else {
			b := at(buf, i).Mul(momentum).Add(d.Div(root))
			*at(buf, i) = b
			*at(p, i) = axpy(x, b, step)
		}
	}
}

// centred is the usual case of RMSprop with momentum and grad_avg: see usualAdam.
func centred(h *kernel.RMSprop, p, g []float32, s [4][]float32) {
	sgn, alpha, c, centre, eps := set(h.Sign), set(h.Alpha), set(h.C), set(h.Centre.W), set(h.Eps)
	minus, momentum, step := set(-1), set(h.Momentum), set(h.Step)
	sq, buf, avg := s[0], s[1], s[2]
	for i := 0; i < len(p); i += lanes {
		d := at(g, i).Mul(sgn)
		v := addcmul(at(sq, i).Mul(alpha), d, d, c)
		a := axpy(*at(avg, i), d.Sub(*at(avg, i)), centre)
		b := at(buf, i).Mul(momentum).Add(d.Div(variance(v, a, minus).Sqrt().Add(eps)))
		*at(sq, i) = v
		*at(avg, i) = a
		*at(buf, i) = b
		*at(p, i) = axpy(*at(p, i), b, step)
	}
}

// variance is Graves, "Generating Sequences With Recurrent Neural Networks", arXiv:1308.0850, equation 40 in part.
func variance(sq, avg, minus vector) vector { return addcmul(sq, avg, avg, minus) }
