//go:build goexperiment.simd && !wasm && !amd64

// Package f32 holds the arithmetic on float32 elements, written once for vectors of any width.
//
// Package f64 is generated from it, and so are lane/f32 and lane/f64, which take one element at a time where there
// are no vectors: `make generate` after a change here.
package f32

import (
	"math"
	"simd"
	"unsafe"
)

// Kernels take columns of one length, a multiple of the lanes of a vector: kernel.Apply sees to the rest.

// at is where the vector that begins at element i lies. It leaves out the checks of a slice expression and the calls
// within simd's Load and Store: an inlined call leaves a NOP behind, and these took the larger part of a loop.
//
//go:nocheckptr
func at(s []float32, i int) *simd.Float32s {
	return (*simd.Float32s)(unsafe.Add(unsafe.Pointer(unsafe.SliceData(s)), uintptr(i)*unsafe.Sizeof(s[0])))
}

// torch's elementwise operations in torch's argument order, rounded as its AVX2 and AVX-512 builds round them:
// a product that feeds a sum is fused, a division is a true division, a scalar is rounded to the element type once.

func set(x float64) simd.Float32s                        { return simd.BroadcastFloat32s(float32(x)) }
func zeros() (z simd.Float32s)                           { return z } // what set(0) makes by an instruction of SSE
func axpy(x, y, alpha simd.Float32s) simd.Float32s       { return y.MulAdd(alpha, x) }
func addcmul(x, a, b, value simd.Float32s) simd.Float32s { return value.Mul(a).MulAdd(b, x) }
func addcdiv(x, a, b, value simd.Float32s) simd.Float32s { return x.Add(value.Mul(a).Div(b)) }

type divisor struct{ by, minus, recip, most simd.Float32s }

// quotient is root/by, for a divisor that is not extreme if there are vectors.
func quotient(root simd.Float32s, k divisor) simd.Float32s {
	if root.Len() == 1 {
		return root.Div(k.by)
	}
	q := root.Mul(k.recip).Min(k.most) // of infinity, a number, so that it remains infinite
	return q.MulAdd(k.minus, root).MulAdd(k.recip, q)
}

// choose is a where on, else b. IfElse calls much that only renames a vector's type, and every call leaves a NOP.
func choose(on bits, a, b simd.Float32s) simd.Float32s {
	return a.ToBits().Xor(b.ToBits()).And(on).Xor(b.ToBits()).BitsToFloat32()
}

// maximum keeps a NaN of either side; Max keeps that of one, no matter which.
func maximum(a, b simd.Float32s) simd.Float32s {
	return a.Max(b).ToBits().Or(nan(a)).Or(nan(b)).BitsToFloat32()
}

// bits are those of a vector. All of a lane are on where a comparison holds, which makes a NaN of them, too.
type bits = simd.Uint32s

func above(a, b simd.Float32s) bits { return a.Greater(b).ToInt32s().ToBits() }
func nan(a simd.Float32s) bits      { return a.NotEqual(a).ToInt32s().ToBits() }
func signs() bits                   { return set(math.Copysign(0, -1)).ToBits() }

func abs(x simd.Float32s) simd.Float32s { return x.ToBits().AndNot(signs()).BitsToFloat32() }
func neg(x simd.Float32s) simd.Float32s { return x.ToBits().Xor(signs()).BitsToFloat32() }

type weight struct {
	w     simd.Float32s
	fromX bits
}

func lerp(x, end simd.Float32s, k weight) simd.Float32s {
	return end.Sub(x).MulAdd(k.w, choose(k.fromX, x, end))
}

// flag is on in all lanes or in none. Choosing by it costs less than a branch, which would keep two copies of a value.
func flag(x float64) bits { return above(set(x), zeros()) }

// decayed is the gradient that descends, with the weight decay that is coupled to it, if any: else the product is -0,
// which changes no sum, for p counts as 0 and wd is -0.
func decayed(p, g, sign simd.Float32s, coupled bits, wd simd.Float32s) simd.Float32s {
	return p.ToBits().And(coupled).BitsToFloat32().MulAdd(wd, g.Mul(sign))
}
