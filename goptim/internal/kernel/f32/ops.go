//go:build goexperiment.simd

// Package f32 holds the arithmetic on float32 elements, written once for vectors of any width.
//
// Package f64 is generated from it, and so are lane/f32 and lane/f64, which take one element at a time where there
// are no vectors: `make generate` after a change here.
package f32

import "simd"

// torch's elementwise operations in torch's argument order, rounded as its AVX2 and AVX-512 builds round them:
// a product that feeds a sum is fused, a division is a true division, a scalar is rounded to the element type once.

func set(x float64) simd.Float32s                        { return simd.BroadcastFloat32s(float32(x)) }
func axpy(x, y, alpha simd.Float32s) simd.Float32s       { return alpha.MulAdd(y, x) }
func addcmul(x, a, b, value simd.Float32s) simd.Float32s { return value.Mul(a).MulAdd(b, x) }
func addcdiv(x, a, b, value simd.Float32s) simd.Float32s { return x.Add(value.Mul(a).Div(b)) }

// maximum keeps a NaN of either side; Max keeps that of one.
func maximum(a, b simd.Float32s) simd.Float32s {
	return a.IfElse(a.Greater(b).Or(a.NotEqual(a)), b)
}

// A weight is lerp's, with the end that torch starts from: x for |w| < 0.5, else end.
type weight struct {
	w     simd.Float32s
	fromX bool
}

func newWeight(w float64) weight {
	if t := float32(w); t <= -0.5 || t >= 0.5 {
		return weight{simd.BroadcastFloat32s(-(1 - t)), false}
	}
	return weight{set(w), true}
}

func lerp(x, end simd.Float32s, k weight) simd.Float32s {
	if k.fromX {
		return k.w.MulAdd(end.Sub(x), x)
	}
	return k.w.MulAdd(end.Sub(x), end)
}

// sign is -1 for maximize, the factor of a gradient, else 1.
func sign(maximize bool) simd.Float32s {
	if maximize {
		return set(-1)
	}
	return set(1)
}

// loadPart and storePart are for the last elements, fewer than a vector. simd's own LoadFloat32sPart reads
// a whole vector and then masks it (Go 1.27.3), which faults at the end of a mapped page.

func loadPart(s []float32) simd.Float32s {
	var b [widest]float32
	copy(b[:], s)
	return simd.LoadFloat32s(b[:])
}

func storePart(s []float32, x simd.Float32s) {
	var b [widest]float32
	x.Store(b[:])
	copy(s, b[:])
}

const widest = 16 // lanes of 512 bits
