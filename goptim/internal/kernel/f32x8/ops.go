//go:build goexperiment.simd && amd64

// Package f32x8 has the arithmetic of the optimizers on float32 elements, in vectors of eight. It is the source of all
// kernels: `make generate` creates the copies for float64, for other vectors and for single elements.
package f32x8

import (
	"math"
	"simd/archsimd"
	"unsafe"
)

// The copies differ in the types and constants of this file, which the other files use by name. Kernels use only vector methods
// that are one instruction in archsimd. A call of another one, such as Abs or IfElse, leaves a NOP.

type (
	vector = archsimd.Float32x8
	bits   = archsimd.Uint32x8 // of a vector; a comparison sets all bits of a lane if it is true, which is also a NaN
)

// lanes is the number of elements in a vector. All buffers of a kernel have the same length, a multiple of lanes: see
// kernel.Apply.
const lanes = 8

// at points to the vector that begins at element i of a buffer: *at(p, i) loads it, and *at(p, i) = x stores x. Unlike a slice
// expression it does not check i, which took most of the time of a loop. Kernels access buffers only with it, so a copy could
// convert elements of another type at loads and stores. It is a pointer because a function that loads or stores would leave
// a NOP in lines without other operations.
//
//go:nocheckptr
func at(s []float32, i int) *vector {
	return (*vector)(unsafe.Add(unsafe.Pointer(unsafe.SliceData(s)), uintptr(i)*unsafe.Sizeof(s[0])))
}

// torch's elementwise operations in torch's argument order, rounded as in its AVX2 and AVX-512 builds:
// a product that feeds a sum is fused, a division is a true division, a scalar is rounded to the element type once.

func set(x float64) vector                 { return archsimd.BroadcastFloat32x8(float32(x)) }
func zeros() (z vector)                    { return z } // set(0) would use an SSE instruction
func axpy(x, y, alpha vector) vector       { return y.MulAdd(alpha, x) }
func addcmul(x, a, b, value vector) vector { return value.Mul(a).MulAdd(b, x) }
func addcdiv(x, a, b, value vector) vector { return x.Add(value.Mul(a).Div(b)) }
func abs(x vector) vector                  { return x.ToBits().AndNot(signs()).BitsToFloat32() }
func neg(x vector) vector                  { return x.ToBits().Xor(signs()).BitsToFloat32() }
func above(a, b vector) bits               { return a.Greater(b).ToInt32x8().ToBits() }
func equal(a, b vector) bits               { return a.Equal(b).ToInt32x8().ToBits() }
func nan(a vector) bits                    { return a.IsNaN().ToInt32x8().ToBits() }
func signs() bits                          { return set(math.Copysign(0, -1)).ToBits() }

type divisor struct{ by, minus, recip, most vector }

// quotient is root/by. In vectors the divisor must not be extreme: see kernel.Divisor.
func quotient(root vector, k divisor) vector {
	if lanes == 1 {
		return root.Div(k.by)
	}
	q := root.Mul(k.recip)
	return q.Min(k.most).MulAdd(k.minus, root).MulAdd(k.recip, q) // most is finite, so that an infinite root stays infinite
}

// choose is a if on is set, else b.
func choose(on bits, a, b vector) vector {
	return a.ToBits().Xor(b.ToBits()).And(on).Xor(b.ToBits()).BitsToFloat32()
}

// keepNaN is x with a NaN in the lanes that are set.
func keepNaN(x vector, isNaN bits) vector { return x.ToBits().Or(isNaN).BitsToFloat32() }

// quiet is x. In the copies for bfloat16, where stored numbers are rounded, it makes a NaN quiet that no arithmetic has seen.
func quiet(x vector) vector { return x }

// again is x, for the first operand of a MulAdd, which overwrites it, while x is needed afterwards. The copies for bfloat16 have
// fewer free registers for such an x.
func again(x vector) vector { return x }

// maximum keeps a NaN of either operand; Max keeps that of one, and which one is undefined.
func maximum(a, b vector) vector {
	return keepNaN(a.Max(b), nan(a).Or(nan(b)))
}

type weight struct {
	w     vector
	fromX bits
}

func lerp(x, end vector, k weight) vector {
	return end.Sub(x).MulAdd(k.w, choose(k.fromX, x, end))
}

// flag is set in all lanes or in none. Choosing by it is cheaper than a branch, which would keep two copies of a value. The zeros
// depend on x, so that they come after the conversions of scalars, which are SSE instructions.
func flag(x float64) bits { v := set(x); return above(v, v.Sub(v)) }

// decayed is the signed gradient with coupled weight decay. Without weight decay, p is replaced by 0 and wd is -0, so the
// product is -0, which does not change the sum.
func decayed(p, g, sign vector, coupled bits, wd vector) vector {
	return p.ToBits().And(coupled).BitsToFloat32().MulAdd(wd, g.Mul(sign))
}
