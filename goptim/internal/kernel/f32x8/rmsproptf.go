//go:build goexperiment.simd && amd64

package f32x8

import "github.com/goptim/goptim/goptim/internal/kernel"

// RMSpropTF applies one step of RMSpropTF to square_avg, to momentum_buffer if there is a second state, and to grad_avg if there
// is a third one (centered).
func RMSpropTF(h *kernel.RMSpropTF, p, g []float32, s [4][]float32) {
	if buf := s[1]; buf != nil && h.Cautious != 0 {
		cautiousRMSpropTF(h, p, g, s)
		return
	}
	sgn, coupled, wd, decay := set(h.Sign), flag(h.Couples), set(h.WeightDecay), set(h.Decay)
	c, eps, minus, momentum := set(h.C), set(h.Eps), set(-1), set(h.Momentum)
	inBuffer, lr, step := flag(h.LRInBuffer), set(h.LR), set(-h.LR)
	sq, buf, avg := s[0], s[1], s[2]
	for i := 0; i < len(p); i += lanes {
		x := at(p, i).Mul(decay)
		d := decayed(x, *at(g, i), sgn, coupled, wd)
		v := *at(sq, i)
		v = axpy(v, d.Mul(d).Sub(v), c)
		*at(sq, i) = v
		if avg != nil {
			a := *at(avg, i)
			a = axpy(a, d.Sub(a), c)
			*at(avg, i) = a
			v = variance(v, a, minus)
		}
		root := v.Add(eps).Sqrt()
		if buf == nil {
			*at(p, i) = addcdiv(x, d, root, step)
		} else {
			b := at(buf, i).Mul(momentum).Add(choose(inBuffer, lr.Mul(d), d).Div(root))
			*at(buf, i) = b
			*at(p, i) = choose(inBuffer, x.Sub(b), axpy(x, b, step))
		}
	}
}

// cautiousRMSpropTF has a mask of the update.
func cautiousRMSpropTF(h *kernel.RMSpropTF, p, g []float32, s [4][]float32) {
	sgn, coupled, wd, decay := set(h.Sign), flag(h.Couples), set(h.WeightDecay), set(h.Decay)
	c, eps, minus, momentum := set(h.C), set(h.Eps), set(-1), set(h.Momentum)
	inBuffer, lr, step, inverse, always := flag(h.LRInBuffer), set(h.LR), set(-h.LR), set(h.Inverse), flag(1-h.Cautious)
	sq, buf, avg := s[0], s[1], s[2]
	for i := 0; i < len(p); i += lanes {
		x := at(p, i).Mul(decay)
		d := decayed(x, *at(g, i), sgn, coupled, wd)
		v := *at(sq, i)
		v = axpy(v, d.Mul(d).Sub(v), c)
		*at(sq, i) = v
		if avg != nil {
			a := *at(avg, i)
			a = axpy(a, d.Sub(a), c)
			*at(avg, i) = a
			v = variance(v, a, minus)
		}
		b := at(buf, i).Mul(momentum).Add(choose(inBuffer, lr.Mul(d), d).Div(v.Add(eps).Sqrt()))
		*at(buf, i) = b
		b = masked(b, d, inverse, always)
		*at(p, i) = choose(inBuffer, x.Sub(b), axpy(x, b, step))
	}
}

// RMSpropTFAgrees replaces p by the mask of the update.
func RMSpropTFAgrees(h *kernel.RMSpropTF, p, g []float32, s [4][]float32) {
	sgn, coupled, wd, decay := set(h.Sign), flag(h.Couples), set(h.WeightDecay), set(h.Decay)
	c, eps, minus, momentum := set(h.C), set(h.Eps), set(-1), set(h.Momentum)
	inBuffer, lr, one := flag(h.LRInBuffer), set(h.LR), set(1).ToBits()
	sq, buf, avg := s[0], s[1], s[2]
	for i := 0; i < len(p); i += lanes {
		d := decayed(at(p, i).Mul(decay), *at(g, i), sgn, coupled, wd)
		v := *at(sq, i)
		v = axpy(v, d.Mul(d).Sub(v), c)
		if avg != nil {
			a := *at(avg, i)
			v = variance(v, axpy(a, d.Sub(a), c), minus)
		}
		b := at(buf, i).Mul(momentum).Add(choose(inBuffer, lr.Mul(d), d).Div(v.Add(eps).Sqrt()))
		*at(p, i) = agrees(b, d, one)
	}
}
