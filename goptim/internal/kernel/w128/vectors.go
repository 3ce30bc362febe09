//go:build goexperiment.simd && amd64

// Package w128 stands in for package simd on amd64: the same names on vectors of 128 bits.
package w128

import "simd/archsimd"

// A vector of floating-point numbers, or their bits.
type (
	Float32s = archsimd.Float32x4
	Float64s = archsimd.Float64x2
	Uint32s  = archsimd.Uint32x4
	Uint64s  = archsimd.Uint64x2
)

func BroadcastFloat32s(x float32) Float32s { return archsimd.BroadcastFloat32x4(x) }
func BroadcastFloat64s(x float64) Float64s { return archsimd.BroadcastFloat64x2(x) }
