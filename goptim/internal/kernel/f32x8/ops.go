//go:build goexperiment.simd && amd64

// Package f32x8 holds the arithmetic of the optimizers on float32 elements, in vectors of eight. It is the source of all
// kernels: `make generate` writes their copies for float64, for other vectors and for one element at a time.
package f32x8

import (
	"math"
	"simd/archsimd"
	"unsafe"
)

// The copies differ in the types and constants of this file, which the other files use by name. Kernels use methods of
// vectors that are one instruction each in archsimd: a call of another one, as Abs or IfElse, leaves a NOP behind.

type (
	vector = archsimd.Float32x8
	bits   = archsimd.Uint32x8 // of a vector; where a comparison holds, all bits of a lane are set, which make a NaN, too
)

// lanes is the number of elements in a vector. The columns that a kernel is given are all of one length, a multiple of
// lanes: see kernel.Apply.
const lanes = 8

// at points to the vector that begins at element i of a column: *at(p, i) loads it, and *at(p, i) = x stores x. It does not
// check i as a slice expression does, which took the larger part of a loop. Kernels reach columns by it alone, so that a
// copy may convert elements of another type where it loads and stores them. It is a pointer because a function that loads
// or stores would leave a NOP behind in lines that do nothing else.
//
//go:nocheckptr
func at(s []float32, i int) *vector {
	return (*vector)(unsafe.Add(unsafe.Pointer(unsafe.SliceData(s)), uintptr(i)*unsafe.Sizeof(s[0])))
}

// torch's elementwise operations in torch's argument order, rounded as its AVX2 and AVX-512 builds round them:
// a product that feeds a sum is fused, a division is a true division, a scalar is rounded to the element type once.

func set(x float64) vector                 { return archsimd.BroadcastFloat32x8(float32(x)) }
func zeros() (z vector)                    { return z } // what set(0) makes by an instruction of SSE
func axpy(x, y, alpha vector) vector       { return y.MulAdd(alpha, x) }
func addcmul(x, a, b, value vector) vector { return value.Mul(a).MulAdd(b, x) }
func addcdiv(x, a, b, value vector) vector { return x.Add(value.Mul(a).Div(b)) }
func abs(x vector) vector                  { return x.ToBits().AndNot(signs()).BitsToFloat32() }
func neg(x vector) vector                  { return x.ToBits().Xor(signs()).BitsToFloat32() }
func above(a, b vector) bits               { return a.Greater(b).ToInt32x8().ToBits() }
func equal(a, b vector) bits               { return a.Equal(b).ToInt32x8().ToBits() }
func nan(a vector) bits                    { return a.NotEqual(a).ToInt32x8().ToBits() }
func signs() bits                          { return set(math.Copysign(0, -1)).ToBits() }

type divisor struct{ by, minus, recip, most vector }

// quotient is root/by. In vectors the divisor must not be extreme, see kernel.Divisor.
func quotient(root vector, k divisor) vector {
	if lanes == 1 {
		return root.Div(k.by)
	}
	q := root.Mul(k.recip).Min(k.most) // of infinity, a number, so that it remains infinite
	return q.MulAdd(k.minus, root).MulAdd(k.recip, q)
}

// choose is a where on is set, else b.
func choose(on bits, a, b vector) vector {
	return a.ToBits().Xor(b.ToBits()).And(on).Xor(b.ToBits()).BitsToFloat32()
}

// maximum keeps a NaN of either side; Max keeps that of one, no matter which.
func maximum(a, b vector) vector {
	return a.Max(b).ToBits().Or(nan(a)).Or(nan(b)).BitsToFloat32()
}

type weight struct {
	w     vector
	fromX bits
}

func lerp(x, end vector, k weight) vector {
	return end.Sub(x).MulAdd(k.w, choose(k.fromX, x, end))
}

// flag is set in all lanes or in none. Choosing by it costs less than a branch, which would keep two copies of a value.
func flag(x float64) bits { return above(set(x), zeros()) }

// decayed is the gradient that descends, with the weight decay that is coupled to it, if any: else the product is -0,
// which changes no sum, for p counts as 0 and wd is -0.
func decayed(p, g, sign vector, coupled bits, wd vector) vector {
	return p.ToBits().And(coupled).BitsToFloat32().MulAdd(wd, g.Mul(sign))
}
