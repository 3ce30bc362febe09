//go:build goexperiment.simd && amd64

package f32x8

import "github.com/goptim/goptim/goptim/internal/kernel"

// Scale is p.mul_(x).
func Scale(h *kernel.Factor, p, g []float32, s [4][]float32) {
	x := set(h.X)
	for i := 0; i < len(p); i += lanes {
		*at(p, i) = at(p, i).Mul(x)
	}
}

// Product is g*x, in p.
func Product(h *kernel.Factor, p, g []float32, s [4][]float32) {
	x := set(h.X)
	for i := 0; i < len(p); i += lanes {
		*at(p, i) = at(g, i).Mul(x)
	}
}

// Divide is p.div_(x).
func Divide(h *kernel.Factor, p, g []float32, s [4][]float32) {
	x := set(h.X)
	for i := 0; i < len(p); i += lanes {
		*at(p, i) = at(p, i).Div(x)
	}
}

// Clamp is p.clamp_(min, max). An element that is NaN stays, and all become NaN if a bound is NaN.
func Clamp(h *kernel.Clamp, p, g []float32, s [4][]float32) {
	low, high := set(h.Min), set(h.Max)
	all := nan(low).Or(nan(high))
	for i := 0; i < len(p); i += lanes {
		x := *at(p, i)
		x = choose(above(low, x), low, x)
		x = choose(above(x, high), high, x)
		*at(p, i) = x.ToBits().Or(all).BitsToFloat32()
	}
}

// Zero is p.zero_().
func Zero(h *kernel.None, p, g []float32, s [4][]float32) {
	zero := zeros()
	for i := 0; i < len(p); i += lanes {
		*at(p, i) = zero
	}
}

// Unscale is p.mul_(x), and finds the largest magnitude before that.
func Unscale(h *kernel.Factor, p, most []float32) {
	x, m, nans := set(h.X), zeros(), zeros().ToBits()
	for i := 0; i < len(p); i += lanes {
		v := *at(p, i)
		m, nans = m.Max(abs(v)), nans.Or(nan(v))
		*at(p, i) = v.Mul(x)
	}
	*at(most, 0) = maximum(*at(most, 0), m.ToBits().Or(nans).BitsToFloat32())
}

// Largest finds the largest magnitude.
func Largest(h *kernel.None, p, most []float32) {
	m, nans := zeros(), zeros().ToBits()
	for i := 0; i < len(p); i += lanes {
		v := *at(p, i)
		m, nans = m.Max(abs(v)), nans.Or(nan(v))
	}
	*at(most, 0) = maximum(*at(most, 0), m.ToBits().Or(nans).BitsToFloat32())
}
