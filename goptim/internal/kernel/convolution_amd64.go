//go:build goexperiment.simd

package kernel

import (
	"math"
	"simd/archsimd"
	"sync"
	"unsafe"
)

// AdafactorConvolutions is f32.AdafactorSmall for contiguous 3 x 3 matrices, the most common size of convolutions. It processes
// some of the first matrices and returns their number, which may be 0.
func AdafactorConvolutions[T Float](h *Adafactor, u, g, row, col []T) int {
	n := min(len(g)/(9*16), blocks)
	if unsafe.Sizeof(T(0)) != 4 || n == 0 {
		return 0
	}
	c := nines()
	if c == nil {
		return 0
	}
	u, g, row, col = u[:9*16*n], g[:9*16*n], row[:3*16*n], col[:3*16*n]
	f := factors.Get().(*[blocks][4]f32x16)
	moderate := c.means(h, f, first(u), first(g), first(row), first(col), n)
	c.updates(h, f, first(u), first(row), n, moderate && h.EpsSq >= 0x1p-60)
	Leave()
	factors.Put(f)
	return 16 * n
}

// blocks is the number of groups of 16 matrices per block: first the means and then the updates, in separate loops whose bodies
// are short enough for the CPU to look a few iterations ahead. A block fits in the L1 cache.
const blocks = 16

// factors are col_var, a vector per column of 16 matrices, and row_var's means.
var factors = sync.Pool{New: func() any { return new([blocks][4]f32x16) }}

// A nine has permutations for 16 matrices in 9 vectors. Distributed once, they have a row per lane: a vector of the first
// elements of 16 rows, of the second, of the third, and so on with the next rows. Distributed again, they have a matrix per lane.
// The lane of a row's matrix is in rows.
type nine struct {
	deal, collect [2][3]archsimd.Uint32x16
	rows          [3]archsimd.Uint32x16
}

var nines = sync.OnceValue(func() *nine {
	s := shuffles()
	if s == nil {
		return nil
	}
	c := new(nine)
	for k := range c.deal {
		copy(c.deal[k][:], s.deal[3][k][:])
		copy(c.collect[k][:], s.collect[3][k][:])
	}
	for k := range c.rows {
		var index [16]uint32
		for lane := range index {
			index[lane] = uint32((16*k + lane) / 3)
		}
		c.rows[k] = archsimd.LoadUint32x16Array(&index)
	}
	return c
})

type f32x16 = archsimd.Float32x16

// threeOf distributes or collects the elements of three vectors.
func threeOf(x, y, z f32x16, c *[2][3]archsimd.Uint32x16) (f32x16, f32x16, f32x16) {
	return x.ConcatPermute(y, c[0][0]).ConcatPermute(z, c[1][0]),
		x.ConcatPermute(y, c[0][1]).ConcatPermute(z, c[1][1]),
		x.ConcatPermute(y, c[0][2]).ConcatPermute(z, c[1][2])
}

// means updates row_var and col_var, distributes the gradient to u, and reports whether the products of row_var and col_var
// and their quotients by the mean are far from overflow.
func (c *nine) means(h *Adafactor, f *[blocks][4]f32x16, u, g, row, col unsafe.Pointer, n int) bool {
	w, zero := archsimd.BroadcastFloat32x16(float32(h.W.W)), archsimd.BroadcastFloat32x16(0)
	fromX := archsimd.BroadcastFloat32x16(float32(h.W.FromX)).Greater(zero)
	fused := h.Fused > 0
	eps, one, three := archsimd.BroadcastFloat32x16(float32(h.Eps1)), archsimd.BroadcastFloat32x16(1), archsimd.BroadcastFloat32x16(3)
	limit := archsimd.BroadcastFloat32x16(0x1p59)
	moderate := uint16(math.MaxUint16)
	for i := range f[:n] {
		f := &f[i]
		for k := range 3 {
			x, y, z := threeOf(*vector(g, 0), *vector(g, 1), *vector(g, 2), &c.deal)
			*vector(u, 3*k), *vector(u, 3*k+1), *vector(u, 3*k+2) = x, y, z
			*vector(row, k) = toMean(*vector(row, k), z.MulAdd(z, y.MulAdd(y, x.Mul(x))), three, w, fromX)
			g = unsafe.Pointer(vector(g, 3))
		}
		x, y, z := threeOf(*vector(row, 0), *vector(row, 1), *vector(row, 2), &c.deal)
		sum := zero.Add(x).Add(y).Add(z)
		mean := sum.Div(three)
		f[3] = eps.IfElse(eps.Greater(mean), mean)
		f[0], f[1], f[2] = threeOf(*vector(col, 0), *vector(col, 1), *vector(col, 2), &c.deal)
		for j := range 3 {
			x, y, z := threeOf(*vector(u, j), *vector(u, 3+j), *vector(u, 6+j), &c.deal)
			f[j] = toMean(f[j], sum3(x, y, z, fused), three, w, fromX)
		}
		moderate &= sum.Mul(f[0].Add(f[1]).Add(f[2]).Add(one)).LessEqual(limit).ToBits()
		*vector(col, 0), *vector(col, 1), *vector(col, 2) = threeOf(f[0], f[1], f[2], &c.collect)
		u, row, col = unsafe.Pointer(vector(u, 9)), unsafe.Pointer(vector(row, 3)), unsafe.Pointer(vector(col, 3))
	}
	return moderate == math.MaxUint16
}

// toMean moves x towards the mean of three squares.
func toMean(x, sum, three, w f32x16, fromX archsimd.Mask32x16) f32x16 {
	root := sum.Sqrt()
	mean := root.Mul(root).Div(three)
	return mean.Sub(x).MulAdd(w, x.IfElse(fromX, mean))
}

// updates replaces the distributed gradient by the unclipped updates. If moderate, it divides by the means in a faster way with
// the same exact result: see Divisor, and Adafactor for the conditions.
func (c *nine) updates(h *Adafactor, f *[blocks][4]f32x16, u, row unsafe.Pointer, n int, moderate bool) {
	sgn, least := archsimd.BroadcastFloat32x16(float32(h.Sign)), archsimd.BroadcastFloat32x16(float32(h.EpsSq))
	one := archsimd.BroadcastFloat32x16(1)
	for i := range f[:n] {
		f := &f[i]
		by := one.Div(f[3])
		for k := range 3 {
			r, rows := *vector(row, k), c.rows[k]
			mean := f[3].Permute(rows)
			x, y, z := r.Mul(f[0].Permute(rows)), r.Mul(f[1].Permute(rows)), r.Mul(f[2].Permute(rows))
			if moderate {
				by := by.Permute(rows)
				x, y, z = quotient(x, mean, by), quotient(y, mean, by), quotient(z, mean, by)
			} else {
				x, y, z = x.Div(mean), y.Div(mean), z.Div(mean)
			}
			x = one.Div(least.IfElse(least.Greater(x), x).Sqrt()).Mul(vector(u, 0).Mul(sgn))
			y = one.Div(least.IfElse(least.Greater(y), y).Sqrt()).Mul(vector(u, 1).Mul(sgn))
			z = one.Div(least.IfElse(least.Greater(z), z).Sqrt()).Mul(vector(u, 2).Mul(sgn))
			*vector(u, 0), *vector(u, 1), *vector(u, 2) = threeOf(x, y, z, &c.collect)
			u = unsafe.Pointer(vector(u, 3))
		}
		row = unsafe.Pointer(vector(row, 3))
	}
}

// quotient is x/y, computed with 1/y.
func quotient(x, y, by f32x16) f32x16 {
	q := x.Mul(by)
	return q.Neg().MulAdd(y, x).MulAdd(by, q)
}

// sum3 is the sum of three squares of a column, in torch's order.
func sum3(x, y, z f32x16, fused bool) f32x16 {
	if fused {
		return z.MulAdd(z, y.MulAdd(y, x.Mul(x)))
	}
	return x.Mul(x).Add(y.Mul(y)).Add(z.Mul(z))
}
