//go:build goexperiment.simd && amd64

package f32x8

import (
	"unsafe"

	"github.com/goptim/goptim/goptim/internal/kernel"
)

// Shazeer & Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", arXiv:1804.04235, Algorithms 4
// and 5, as torch computes them.

// AdafactorMean moves row_var or col_var (p) towards the mean of h.N squares, whose sum is g.
func AdafactorMean(h *kernel.Adafactor, p, g []float32, s [4][]float32) {
	c, n := weight{set(h.W.W), flag(h.W.FromX)}, set(h.N)
	for i := 0; i < len(p); i += lanes {
		*at(p, i) = lerp(*at(p, i), meanSquare(*at(g, i), n), c)
	}
}

// AdafactorRow writes the unclipped update of a row to p, from its gradient and col_var. It divides by row_var's mean
// without the CPU's divider, for which the square roots wait, and is rounded as a division: see kernel.Divisor, and
// kernel.Adafactor for the conditions.
func AdafactorRow(h *kernel.Adafactor, p, g []float32, s [4][]float32) {
	sgn, row, least, one := set(h.Sign), set(h.Row), set(h.EpsSq), set(1)
	minus, recip := set(-h.Mean), one.Div(set(h.Mean))
	col := s[0]
	for i := 0; i < len(p); i += lanes {
		v := row.Mul(*at(col, i))
		q := v.Mul(recip)
		v = minus.MulAdd(q, v).MulAdd(recip, q)
		*at(p, i) = rootless(v, least, one).Mul(at(g, i).Mul(sgn))
	}
}

// AdafactorProduct writes the unclipped update to p, from the gradient and the products of row_var and col_var.
func AdafactorProduct(h *kernel.Adafactor, p, g []float32, s [4][]float32) {
	sgn, mean, least, one := set(h.Sign), set(h.Mean), set(h.EpsSq), set(1)
	product := s[0]
	for i := 0; i < len(p); i += lanes {
		*at(p, i) = rootless(at(product, i).Div(mean), least, one).Mul(at(g, i).Mul(sgn))
	}
}

// AdafactorVector writes the unclipped update of a vector to p, and updates its variance.
func AdafactorVector(h *kernel.Adafactor, p, g []float32, s [4][]float32) {
	sgn, c, least, one := set(h.Sign), weight{set(h.W.W), flag(h.W.FromX)}, set(h.EpsSq), set(1)
	variance := s[0]
	for i := 0; i < len(p); i += lanes {
		d := at(g, i).Mul(sgn)
		v := lerp(*at(variance, i), d.Mul(d), c)
		*at(variance, i) = v
		*at(p, i) = rootless(v, least, one).Mul(d)
	}
}

// AdafactorSingles processes matrices of one element: it updates row_var and col_var, and writes the unclipped updates to p.
func AdafactorSingles(h *kernel.Adafactor, p, g []float32, s [4][]float32) {
	sgn, c, eps, least, one := set(h.Sign), weight{set(h.W.W), flag(h.W.FromX)}, set(h.Eps1), set(h.EpsSq), set(1)
	row, col := s[0], s[1]
	for i := 0; i < len(p); i += lanes {
		d := at(g, i).Mul(sgn)
		mean := d.Mul(d) // torch squares the root of this, which is the same number, also if it underflows
		r, k := lerp(*at(row, i), mean, c), lerp(*at(col, i), mean, c)
		*at(row, i) = r
		*at(col, i) = k
		*at(p, i) = rootless(r.Mul(k).Div(atLeast(r, eps)), least, one).Mul(d)
	}
}

// AdafactorSmall processes small matrices, one per lane, with consecutive elements in consecutive vectors. It updates row_var
// and col_var, and writes the unclipped updates to p, which may be the gradient.
func AdafactorSmall(h *kernel.Adafactor, p, g []float32, s [4][]float32) {
	rows, cols := int(h.Rows), int(h.Cols)
	if rows == 3 && cols == 3 {
		convolutions(h, p, g, s)
		return
	}
	c, fused := weight{set(h.W.W), flag(h.W.FromX)}, flag(h.Fused)
	sgn, eps, least, one := set(h.Sign), set(h.Eps1), set(h.EpsSq), set(1)
	overRow, overCol := set(h.Cols), set(h.Rows)
	const w = lanes
	row, col, size := s[0], s[1], rows*cols*w
	for ; len(p) > 0; p, g, row, col = p[size:], g[size:], row[rows*w:], col[cols*w:] {
		for i := range rows {
			sum := sumSquares(g, i*cols*w, w, cols, fused)
			*at(row, i*w) = lerp(*at(row, i*w), meanSquare(sum, overRow), c)
		}
		for j := range cols {
			var sum vector
			if cols == 1 { // torch treats the only column as a row
				sum = sumSquares(g, 0, w, rows, fused)
			} else {
				sum = sumColumn(g, j*w, cols*w, rows, fused)
			}
			*at(col, j*w) = lerp(*at(col, j*w), meanSquare(sum, overCol), c)
		}
		mean := atLeast(sumFew(row, w, rows).Div(overCol), eps)
		for i := range rows {
			r := *at(row, i*w)
			for j := range cols {
				k := (i*cols + j) * w
				v := r.Mul(*at(col, j*w)).Div(mean)
				*at(p, k) = rootless(v, least, one).Mul(at(g, k).Mul(sgn))
			}
		}
	}
}

// convolutions is AdafactorSmall for 3 x 3 matrices, the most common size of convolutions.
func convolutions(h *kernel.Adafactor, p, g []float32, s [4][]float32) {
	c, fused := weight{set(h.W.W), flag(h.W.FromX)}, flag(h.Fused)
	sgn, eps, least, one, three := set(h.Sign), set(h.Eps1), set(h.EpsSq), set(1), set(3)
	const w = lanes
	row, col := s[0], s[1]
	for k, l := 0, 0; k < len(p); k, l = k+9*w, l+3*w {
		for i := range 3 {
			x, y, z := *at(g, k+3*i*w), *at(g, k+(3*i+1)*w), *at(g, k+(3*i+2)*w)
			sum := z.MulAdd(z, y.MulAdd(y, x.Mul(x)))
			*at(row, l+i*w) = lerp(*at(row, l+i*w), meanSquare(sum, three), c)
		}
		for j := range 3 {
			x, y, z := *at(g, k+j*w), *at(g, k+(3+j)*w), *at(g, k+(6+j)*w)
			squares := x.Mul(x)
			sum := choose(fused, z.MulAdd(z, y.MulAdd(y, squares)), squares.Add(y.Mul(y)).Add(z.Mul(z)))
			*at(col, l+j*w) = lerp(*at(col, l+j*w), meanSquare(sum, three), c)
		}
		mean := atLeast(zeros().Add(*at(row, l)).Add(*at(row, l+w)).Add(*at(row, l+2*w)).Div(three), eps)
		for i := range 3 {
			r := *at(row, l+i*w)
			for j := range 3 {
				ij := k + (3*i+j)*w
				v := r.Mul(*at(col, l+j*w)).Div(mean)
				*at(p, ij) = rootless(v, least, one).Mul(at(g, ij).Mul(sgn))
			}
		}
	}
}

// AdafactorStep subtracts the update g from the parameter.
func AdafactorStep(h *kernel.Adafactor, p, g []float32, s [4][]float32) {
	decay, step := set(h.Decay), set(h.Step)
	for i := 0; i < len(p); i += lanes {
		*at(p, i) = axpy(at(p, i).Mul(decay), *at(g, i), step)
	}
}

// inFlight is the number of torch's concurrent sums; see package reduce, whose orders sumSquares and sumFew use.
const inFlight = 32 / int(unsafe.Sizeof(float32(0)))

// meanSquare is torch's mean of n squares, computed from their norm.
func meanSquare(sum, n vector) vector {
	root := sum.Sqrt()
	return root.Mul(root).Div(n)
}

// atLeast is torch's clamp with a minimum, which keeps a NaN.
func atLeast(x, least vector) vector {
	return x.Max(least).ToBits().Or(nan(x)).BitsToFloat32()
}

// rootless is the reciprocal of the square root of v, which torch rounds twice.
func rootless(v, least, one vector) vector {
	return one.Div(atLeast(v, least).Sqrt())
}

func addSquare(sum, x vector, fused bits) vector {
	return choose(fused, x.MulAdd(x, sum), sum.Add(x.Mul(x)))
}

// sumSquares adds the squares of n vectors.
func sumSquares(x []float32, first, stride, n int, fused bits) vector {
	whole := n - n%inFlight
	sum := zeros()
	for l := 0; l < inFlight && whole > 0; l++ {
		part := zeros()
		for i := l; i < whole; i += inFlight {
			part = addSquare(part, *at(x, first+i*stride), fused)
		}
		sum = sum.Add(part)
	}
	plain := whole + (n-whole)&^3
	for i := whole; i < n; i++ {
		xi := *at(x, first+i*stride)
		if i < plain {
			sum = addSquare(sum, xi, fused)
		} else {
			sum = xi.MulAdd(xi, sum)
		}
	}
	return sum
}

func sumColumn(x []float32, first, stride, n int, fused bits) vector {
	sum := zeros()
	for i := range n {
		sum = addSquare(sum, *at(x, first+i*stride), fused)
	}
	return sum
}

// sumFew adds n vectors, fewer than four times inFlight.
func sumFew(x []float32, stride, n int) vector {
	if n < inFlight {
		var sum vector
		for k := range 4 {
			part := zeros()
			if k < n&^3 {
				part = *at(x, k*stride)
			}
			for i := n &^ 3; i < n && k == 0; i++ {
				part = part.Add(*at(x, i*stride))
			}
			if k == 0 {
				sum = part
			} else {
				sum = sum.Add(part)
			}
		}
		return sum
	}
	whole := n - n%inFlight
	sum := zeros()
	for i := whole; i < n; i++ {
		sum = sum.Add(*at(x, i*stride))
	}
	for l := range inFlight {
		part := *at(x, l*stride)
		for i := l + inFlight; i < whole; i += inFlight {
			part = part.Add(*at(x, i*stride))
		}
		sum = sum.Add(part)
	}
	return sum
}
