//go:build goexperiment.simd && !wasm && !amd64

package f32

import (
	"simd"
	"unsafe"

	"github.com/goptim/goptim/goptim/internal/kernel"
	lane "github.com/goptim/goptim/goptim/internal/kernel/lane/f32"
)

// The passes of L-BFGS over flat vectors, which also sum: element i of a column is added to lane i%group, so that a sum
// does not depend on the width of vectors. A sweep over the columns takes the lanes that fill two vectors; or four, in
// the passes over the history, for which there are registers with all widths but the widest, where two are all lanes.
// With 256 bits that is half the sweeps, and each reads whole lines of memory: half the time, from memory.

// group is the number of lanes of a sum, those of two of the widest vectors. Columns are a multiple of it long.
const group = 128 / int(unsafe.Sizeof(float32(0)))

// LBFGSFirst sets the first direction: d = -g, and keeps g. It sums |g| and g·g.
// The columns are d, the kept gradient, g.
func LBFGSFirst(h *kernel.LBFGS, c *kernel.Columns[float32], out *kernel.Sums[float32]) {
	if simd.Emulated() { // emulation rounds MulAdd twice
		lane.LBFGSFirst(h, c, out)
		return
	}
	zero := zeros()
	d, kept, g, w := c[0], c[1], c[2], zero.Len()
	for l := 0; l < group; l += 2 * w {
		abs0, abs1, square0, square1, most0, most1 := zero, zero, zero, zero, zero, zero
		for i, k := l, l+w; i < len(d); i, k = i+group, k+group {
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

// LBFGSPair makes a pair of the history, y = g - kept and s = A*last, and sets d = -g and keeps g. It sums y·s, y·y and
// s·g. The columns are y, s, d, the kept gradient, g, the last direction, which may be d.
func LBFGSPair(h *kernel.LBFGS, c *kernel.Columns[float32], out *kernel.Sums[float32]) {
	if simd.Emulated() { // emulation rounds MulAdd twice
		lane.LBFGSPair(h, c, out)
		return
	}
	zero, t := zeros(), set(h.A)
	y, s, d, kept, g, last, w := c[0], c[1], c[2], c[3], c[4], c[5], zero.Len()
	for l := 0; l < group; l += 2 * w {
		ys0, ys1, yy0, yy1, sg0, sg1 := zero, zero, zero, zero, zero, zero
		for i, k := l, l+w; i < len(d); i, k = i+group, k+group {
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

// LBFGSDot sums x·y and finds the largest |x|. The columns are x, y.
func LBFGSDot(h *kernel.LBFGS, c *kernel.Columns[float32], out *kernel.Sums[float32]) {
	if simd.Emulated() { // emulation rounds MulAdd twice
		lane.LBFGSDot(h, c, out)
		return
	}
	zero := zeros()
	x, y, w := c[0], c[1], zero.Len()
	if 2*w == group { // with the widest vectors
		dot0, dot1, most0, most1 := zero, zero, zero, zero
		for i := 0; i < len(x); i += group {
			dot0, most0 = dotMost(at(x, i), at(y, i), dot0, most0)
			dot1, most1 = dotMost(at(x, i+w), at(y, i+w), dot1, most1)
		}
		put(&out[0], 0, dot0, dot1)
		put(&out[kernel.Most], 0, most0, most1)
		return
	}
	for l := 0; l < group; l += 4 * w {
		dot0, dot1, most0, most1 := zero, zero, zero, zero
		dot2, dot3, most2, most3 := zero, zero, zero, zero
		for i := l; i < len(x); i += group {
			dot0, most0 = dotMost(at(x, i), at(y, i), dot0, most0)
			dot1, most1 = dotMost(at(x, i+w), at(y, i+w), dot1, most1)
			dot2, most2 = dotMost(at(x, i+2*w), at(y, i+2*w), dot2, most2)
			dot3, most3 = dotMost(at(x, i+3*w), at(y, i+3*w), dot3, most3)
		}
		put(&out[0], l, dot0, dot1)
		put(&out[0], l+2*w, dot2, dot3)
		put(&out[kernel.Most], l, most0, most1)
		put(&out[kernel.Most], l+2*w, most2, most3)
	}
}

// dotMost adds x·y to dot, and takes |x| into most.
func dotMost(x, y *simd.Float32s, dot, most simd.Float32s) (simd.Float32s, simd.Float32s) {
	return y.MulAdd(*x, dot), maximum(most, abs(*x))
}

// LBFGSAxpy is a step of the two-loop recursion, r += A*x, and sums the next one's r·y. It finds the largest |r|.
// The columns are r, x, y.
func LBFGSAxpy(h *kernel.LBFGS, c *kernel.Columns[float32], out *kernel.Sums[float32]) {
	if simd.Emulated() { // emulation rounds MulAdd twice
		lane.LBFGSAxpy(h, c, out)
		return
	}
	zero, alpha := zeros(), set(h.A)
	r, x, y, w := c[0], c[1], c[2], zero.Len()
	if 2*w == group { // with the widest vectors
		dot0, dot1, most0, most1 := zero, zero, zero, zero
		for i := 0; i < len(r); i += group {
			dot0, most0 = axpyDot(at(r, i), at(x, i), at(y, i), alpha, dot0, most0)
			dot1, most1 = axpyDot(at(r, i+w), at(x, i+w), at(y, i+w), alpha, dot1, most1)
		}
		put(&out[0], 0, dot0, dot1)
		put(&out[kernel.Most], 0, most0, most1)
		return
	}
	for l := 0; l < group; l += 4 * w {
		dot0, dot1, most0, most1 := zero, zero, zero, zero
		dot2, dot3, most2, most3 := zero, zero, zero, zero
		for i := l; i < len(r); i += group {
			dot0, most0 = axpyDot(at(r, i), at(x, i), at(y, i), alpha, dot0, most0)
			dot1, most1 = axpyDot(at(r, i+w), at(x, i+w), at(y, i+w), alpha, dot1, most1)
			dot2, most2 = axpyDot(at(r, i+2*w), at(x, i+2*w), at(y, i+2*w), alpha, dot2, most2)
			dot3, most3 = axpyDot(at(r, i+3*w), at(x, i+3*w), at(y, i+3*w), alpha, dot3, most3)
		}
		put(&out[0], l, dot0, dot1)
		put(&out[0], l+2*w, dot2, dot3)
		put(&out[kernel.Most], l, most0, most1)
		put(&out[kernel.Most], l+2*w, most2, most3)
	}
}

// axpyDot is r += alpha*x, and dotMost of that and y.
func axpyDot(r, x, y *simd.Float32s, alpha, dot, most simd.Float32s) (simd.Float32s, simd.Float32s) {
	z := axpy(*r, *x, alpha)
	*r = z
	return y.MulAdd(z, dot), maximum(most, abs(z))
}

// LBFGSTurn ends the first loop and begins the second, r = (r + A*x) * B, and sums r·x, as both are about one pair.
// The columns are r, x.
func LBFGSTurn(h *kernel.LBFGS, c *kernel.Columns[float32], out *kernel.Sums[float32]) {
	if simd.Emulated() { // emulation rounds MulAdd twice
		lane.LBFGSTurn(h, c, out)
		return
	}
	zero, alpha, scale := zeros(), set(h.A), set(h.B)
	r, x, w := c[0], c[1], zero.Len()
	if 2*w == group { // with the widest vectors
		dot0, dot1 := zero, zero
		for i := 0; i < len(r); i += group {
			dot0 = turnDot(at(r, i), at(x, i), alpha, scale, dot0)
			dot1 = turnDot(at(r, i+w), at(x, i+w), alpha, scale, dot1)
		}
		put(&out[0], 0, dot0, dot1)
		return
	}
	for l := 0; l < group; l += 4 * w {
		dot0, dot1, dot2, dot3 := zero, zero, zero, zero
		for i := l; i < len(r); i += group {
			dot0 = turnDot(at(r, i), at(x, i), alpha, scale, dot0)
			dot1 = turnDot(at(r, i+w), at(x, i+w), alpha, scale, dot1)
			dot2 = turnDot(at(r, i+2*w), at(x, i+2*w), alpha, scale, dot2)
			dot3 = turnDot(at(r, i+3*w), at(x, i+3*w), alpha, scale, dot3)
		}
		put(&out[0], l, dot0, dot1)
		put(&out[0], l+2*w, dot2, dot3)
	}
}

// turnDot is r = (r + alpha*x) * scale, and adds r·x to dot.
func turnDot(r, x *simd.Float32s, alpha, scale, dot simd.Float32s) simd.Float32s {
	z := axpy(*r, *x, alpha).Mul(scale)
	*r = z
	return x.MulAdd(z, dot)
}

// LBFGSScale is the recursion without a history, r *= B. It sums r·y and finds the largest |r|. The columns are r, y.
func LBFGSScale(h *kernel.LBFGS, c *kernel.Columns[float32], out *kernel.Sums[float32]) {
	if simd.Emulated() { // emulation rounds MulAdd twice
		lane.LBFGSScale(h, c, out)
		return
	}
	zero, scale := zeros(), set(h.B)
	r, y, w := c[0], c[1], zero.Len()
	for l := 0; l < group; l += 2 * w {
		dot0, dot1, most0, most1 := zero, zero, zero, zero
		for i, k := l, l+w; i < len(r); i, k = i+group, k+group {
			r0, r1 := at(r, i).Mul(scale), at(r, k).Mul(scale)
			*at(r, i), *at(r, k) = r0, r1
			dot0, dot1 = at(y, i).MulAdd(r0, dot0), at(y, k).MulAdd(r1, dot1)
			most0, most1 = maximum(most0, abs(r0)), maximum(most1, abs(r1))
		}
		put(&out[0], l, dot0, dot1)
		put(&out[kernel.Most], l, most0, most1)
	}
}

// LBFGSMove is p = x + A*d. The columns are p, x, which may be p, d.
func LBFGSMove(h *kernel.LBFGS, c *kernel.Columns[float32], out *kernel.Sums[float32]) {
	if simd.Emulated() { // emulation rounds MulAdd twice
		lane.LBFGSMove(h, c, out)
		return
	}
	alpha := set(h.A)
	p, x, d, w := c[0], c[1], c[2], alpha.Len()
	for i := 0; i < len(p); i += w {
		*at(p, i) = axpy(*at(x, i), *at(d, i), alpha)
	}
}

// put writes two vectors of lanes from lane l on.
func put(lanes *[kernel.SumLanes]float32, l int, a, b simd.Float32s) {
	*at(lanes[:], l) = a
	*at(lanes[:], l+a.Len()) = b
}
