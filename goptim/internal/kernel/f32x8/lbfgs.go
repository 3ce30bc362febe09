//go:build goexperiment.simd && amd64

package f32x8

import (
	"unsafe"

	"github.com/goptim/goptim/goptim/internal/kernel"
)

// The passes of L-BFGS over flat vectors, which also compute sums. Element i is added to lane i%group, so a sum does not depend
// on the width of the CPU's vectors. A sweep processes the lanes of two vectors. In the passes over the history it processes
// those of four, except with the widest vectors, where two have all lanes. With 256 bits this halves the number of sweeps,
// and each reads whole cache lines, which takes half the time if the data is in memory.

// group is the number of lanes of a sum, those of two of the widest vectors. The length of a vector is a multiple of it.
const group = 128 / int(unsafe.Sizeof(float32(0)))

// LBFGSFirst computes the first direction d = -g, and stores g. It sums |g| and g·g. The vectors are d, the stored gradient,
// and g.
func LBFGSFirst(h *kernel.LBFGS, c *kernel.Columns[float32], out *kernel.Sums[float32]) {
	zero := zeros()
	d, kept, g := c[0], c[1], c[2]
	for l := 0; l < group; l += 2 * lanes {
		abs0, abs1, square0, square1, most0, most1 := zero, zero, zero, zero, zero, zero
		for i, k := l, l+lanes; i < len(d); i, k = i+group, k+group {
			g0, g1 := *at(g, i), *at(g, k)
			*at(kept, i), *at(kept, k) = g0, g1
			*at(d, i), *at(d, k) = neg(g0), neg(g1)
			square0, square1 = g0.MulAdd(g0, square0), g1.MulAdd(g1, square1)
			g0, g1 = abs(g0), abs(g1)
			abs0, abs1 = abs0.Add(g0), abs1.Add(g1)
			most0, most1 = maximum(most0, g0), maximum(most1, g1)
		}
		put(&out[0], l, abs0, abs1)
		put(&out[1], l, square0, square1)
		put(&out[kernel.Most], l, most0, most1)
	}
}

// LBFGSPair computes a pair of the history, y = g - stored and s = A*last, sets d = -g, and stores g. It sums y·s, y·y and s·g.
// The vectors are y, s, d, the stored gradient, g, and the last direction, which may be d.
func LBFGSPair(h *kernel.LBFGS, c *kernel.Columns[float32], out *kernel.Sums[float32]) {
	zero, t := zeros(), set(h.A)
	y, s, d, kept, g, last := c[0], c[1], c[2], c[3], c[4], c[5]
	for l := 0; l < group; l += 2 * lanes {
		ys0, ys1, yy0, yy1, sg0, sg1 := zero, zero, zero, zero, zero, zero
		for i, k := l, l+lanes; i < len(d); i, k = i+group, k+group {
			g0, g1 := *at(g, i), *at(g, k)
			y0, y1 := g0.Sub(*at(kept, i)), g1.Sub(*at(kept, k))
			s0, s1 := at(last, i).Mul(t), at(last, k).Mul(t)
			*at(y, i), *at(y, k) = y0, y1
			*at(s, i), *at(s, k) = s0, s1
			*at(kept, i), *at(kept, k) = g0, g1
			*at(d, i), *at(d, k) = neg(g0), neg(g1)
			ys0, ys1 = y0.MulAdd(s0, ys0), y1.MulAdd(s1, ys1)
			yy0, yy1 = y0.MulAdd(y0, yy0), y1.MulAdd(y1, yy1)
			sg0, sg1 = s0.MulAdd(g0, sg0), s1.MulAdd(g1, sg1)
		}
		put(&out[0], l, ys0, ys1)
		put(&out[1], l, yy0, yy1)
		put(&out[2], l, sg0, sg1)
	}
}

// LBFGSDot sums x·y and finds the largest |x|. The vectors are x and y.
func LBFGSDot(h *kernel.LBFGS, c *kernel.Columns[float32], out *kernel.Sums[float32]) {
	zero := zeros()
	x, y := c[0], c[1]
	if 2*lanes == group { // with the widest vectors
		dot0, dot1, most0, most1 := zero, zero, zero, zero
		for i := 0; i < len(x); i += group {
			dot0, most0 = dotMost(at(x, i), at(y, i), dot0, most0)
			dot1, most1 = dotMost(at(x, i+lanes), at(y, i+lanes), dot1, most1)
		}
		put(&out[0], 0, dot0, dot1)
		put(&out[kernel.Most], 0, most0, most1)
		return
	}
	for l := 0; l < group; l += 4 * lanes {
		dot0, dot1, most0, most1 := zero, zero, zero, zero
		dot2, dot3, most2, most3 := zero, zero, zero, zero
		for i := l; i < len(x); i += group {
			dot0, most0 = dotMost(at(x, i), at(y, i), dot0, most0)
			dot1, most1 = dotMost(at(x, i+lanes), at(y, i+lanes), dot1, most1)
			dot2, most2 = dotMost(at(x, i+2*lanes), at(y, i+2*lanes), dot2, most2)
			dot3, most3 = dotMost(at(x, i+3*lanes), at(y, i+3*lanes), dot3, most3)
		}
		put(&out[0], l, dot0, dot1)
		put(&out[0], l+2*lanes, dot2, dot3)
		put(&out[kernel.Most], l, most0, most1)
		put(&out[kernel.Most], l+2*lanes, most2, most3)
	}
}

// dotMost adds x·y to dot, and updates the maximum with |x|.
func dotMost(x, y *vector, dot, most vector) (vector, vector) {
	return y.MulAdd(*x, dot), maximum(most, abs(*x))
}

// LBFGSAxpy is a step of the two-loop recursion, r += A*x. It sums r·y for the next step, and finds the largest |r|. The
// vectors are r, x and y.
func LBFGSAxpy(h *kernel.LBFGS, c *kernel.Columns[float32], out *kernel.Sums[float32]) {
	zero, alpha := zeros(), set(h.A)
	r, x, y := c[0], c[1], c[2]
	if 2*lanes == group { // with the widest vectors
		dot0, dot1, most0, most1 := zero, zero, zero, zero
		for i := 0; i < len(r); i += group {
			dot0, most0 = axpyDot(at(r, i), at(x, i), at(y, i), alpha, dot0, most0)
			dot1, most1 = axpyDot(at(r, i+lanes), at(x, i+lanes), at(y, i+lanes), alpha, dot1, most1)
		}
		put(&out[0], 0, dot0, dot1)
		put(&out[kernel.Most], 0, most0, most1)
		return
	}
	for l := 0; l < group; l += 4 * lanes {
		dot0, dot1, most0, most1 := zero, zero, zero, zero
		dot2, dot3, most2, most3 := zero, zero, zero, zero
		for i := l; i < len(r); i += group {
			dot0, most0 = axpyDot(at(r, i), at(x, i), at(y, i), alpha, dot0, most0)
			dot1, most1 = axpyDot(at(r, i+lanes), at(x, i+lanes), at(y, i+lanes), alpha, dot1, most1)
			dot2, most2 = axpyDot(at(r, i+2*lanes), at(x, i+2*lanes), at(y, i+2*lanes), alpha, dot2, most2)
			dot3, most3 = axpyDot(at(r, i+3*lanes), at(x, i+3*lanes), at(y, i+3*lanes), alpha, dot3, most3)
		}
		put(&out[0], l, dot0, dot1)
		put(&out[0], l+2*lanes, dot2, dot3)
		put(&out[kernel.Most], l, most0, most1)
		put(&out[kernel.Most], l+2*lanes, most2, most3)
	}
}

// axpyDot computes r += alpha*x, and dotMost of r and y.
func axpyDot(r, x, y *vector, alpha, dot, most vector) (vector, vector) {
	z := axpy(*r, *x, alpha)
	*r = z
	return y.MulAdd(z, dot), maximum(most, abs(z))
}

// LBFGSTurn ends the first loop and begins the second, r = (r + A*x) * B, and sums r·x, as both use the same pair. The vectors
// are r and x.
func LBFGSTurn(h *kernel.LBFGS, c *kernel.Columns[float32], out *kernel.Sums[float32]) {
	zero, alpha, scale := zeros(), set(h.A), set(h.B)
	r, x := c[0], c[1]
	if 2*lanes == group { // with the widest vectors
		dot0, dot1 := zero, zero
		for i := 0; i < len(r); i += group {
			dot0 = turnDot(at(r, i), at(x, i), alpha, scale, dot0)
			dot1 = turnDot(at(r, i+lanes), at(x, i+lanes), alpha, scale, dot1)
		}
		put(&out[0], 0, dot0, dot1)
		return
	}
	for l := 0; l < group; l += 4 * lanes {
		dot0, dot1, dot2, dot3 := zero, zero, zero, zero
		for i := l; i < len(r); i += group {
			dot0 = turnDot(at(r, i), at(x, i), alpha, scale, dot0)
			dot1 = turnDot(at(r, i+lanes), at(x, i+lanes), alpha, scale, dot1)
			dot2 = turnDot(at(r, i+2*lanes), at(x, i+2*lanes), alpha, scale, dot2)
			dot3 = turnDot(at(r, i+3*lanes), at(x, i+3*lanes), alpha, scale, dot3)
		}
		put(&out[0], l, dot0, dot1)
		put(&out[0], l+2*lanes, dot2, dot3)
	}
}

// turnDot computes r = (r + alpha*x) * scale, and adds r·x to dot.
func turnDot(r, x *vector, alpha, scale, dot vector) vector {
	z := axpy(*r, *x, alpha).Mul(scale)
	*r = z
	return x.MulAdd(z, dot)
}

// LBFGSScale is the recursion without a history, r *= B. It sums r·y and finds the largest |r|. The vectors are r and y.
func LBFGSScale(h *kernel.LBFGS, c *kernel.Columns[float32], out *kernel.Sums[float32]) {
	zero, scale := zeros(), set(h.B)
	r, y := c[0], c[1]
	for l := 0; l < group; l += 2 * lanes {
		dot0, dot1, most0, most1 := zero, zero, zero, zero
		for i, k := l, l+lanes; i < len(r); i, k = i+group, k+group {
			r0, r1 := at(r, i).Mul(scale), at(r, k).Mul(scale)
			*at(r, i), *at(r, k) = r0, r1
			dot0, dot1 = at(y, i).MulAdd(r0, dot0), at(y, k).MulAdd(r1, dot1)
			most0, most1 = maximum(most0, abs(r0)), maximum(most1, abs(r1))
		}
		put(&out[0], l, dot0, dot1)
		put(&out[kernel.Most], l, most0, most1)
	}
}

// LBFGSMove computes p = x + A*d. The vectors are p, x, which may be p, and d.
func LBFGSMove(h *kernel.LBFGS, c *kernel.Columns[float32], out *kernel.Sums[float32]) {
	alpha := set(h.A)
	p, x, d := c[0], c[1], c[2]
	for i := 0; i < len(p); i += lanes {
		*at(p, i) = axpy(*at(x, i), *at(d, i), alpha)
	}
}

// put writes the sums of two vectors from lane l on.
func put(sums *[kernel.SumLanes]float32, l int, a, b vector) {
	*at(sums[:], l) = a
	*at(sums[:], l+lanes) = b
}
