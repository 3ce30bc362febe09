//go:build goexperiment.simd && !wasm

// Package f32 holds the arithmetic on float32 elements, written once for vectors of any width.
//
// Package f64 is generated from it, and so are lane/f32 and lane/f64, which take one element at a time where there
// are no vectors: `make generate` after a change here.
package f32

import (
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
func axpy(x, y, alpha simd.Float32s) simd.Float32s       { return y.MulAdd(alpha, x) }
func addcmul(x, a, b, value simd.Float32s) simd.Float32s { return value.Mul(a).MulAdd(b, x) }
func addcdiv(x, a, b, value simd.Float32s) simd.Float32s { return x.Add(value.Mul(a).Div(b)) }

type divisor struct{ by, minus, recip simd.Float32s }

// quotient is root/by, for a divisor that is not extreme if there are vectors.
func quotient(root simd.Float32s, k divisor) simd.Float32s {
	if root.Len() == 1 {
		return root.Div(k.by)
	}
	q := root.Mul(k.recip)
	rounded := q.NotEqual(root) // not 0, infinity, or divided by 1
	return k.minus.MulAdd(q, root).MulAdd(k.recip, q).IfElse(rounded, root)
}

// maximum keeps a NaN of either side; Max keeps that of one.
func maximum(a, b simd.Float32s) simd.Float32s {
	return a.IfElse(a.Greater(b).Or(a.NotEqual(a)), b)
}

type weight struct {
	w     simd.Float32s
	fromX simd.Mask32s
}

func lerp(x, end simd.Float32s, k weight) simd.Float32s {
	return end.Sub(x).MulAdd(k.w, x.IfElse(k.fromX, end))
}

// flag is on in all lanes or in none. Choosing by it costs less than a branch, which would keep two copies of a value.
func flag(x float64) simd.Mask32s { return set(x).Greater(set(0)) }

// decayed is the gradient that descends, with the weight decay that is coupled to it, if any.
func decayed(p, g, sign simd.Float32s, coupled simd.Mask32s, wd simd.Float32s) simd.Float32s {
	g = g.Mul(sign)
	return axpy(g, p, wd).IfElse(coupled, g)
}
