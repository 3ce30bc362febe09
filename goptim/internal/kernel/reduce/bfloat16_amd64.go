//go:build goexperiment.simd

package reduce

import (
	"simd/archsimd"
	"unsafe"

	"github.com/goptim/goptim/goptim/internal/kernel"
)

// loadBFloat16 returns the 8 elements from element i on.
//
//go:nocheckptr
func loadBFloat16(x *uint16, i int) archsimd.Float32x8 {
	v := (*archsimd.Uint16x8)(unsafe.Add(unsafe.Pointer(x), uintptr(i)*2))
	return v.ExtendToUint32().ShiftAllLeft(16).BitsToFloat32()
}

// addSquaresBFloat16 adds n elements, a multiple of 8.
func addSquaresBFloat16(lanes *[widest]float32, x *uint16, n int, fused bool) {
	sum := *atFloat32(&lanes[0], 0)
	if fused {
		for i := 0; i < n; i += 8 {
			v := loadBFloat16(x, i)
			sum = v.MulAdd(v, sum)
		}
	} else {
		for i := 0; i < n; i += 8 {
			v := loadBFloat16(x, i)
			sum = sum.Add(v.Mul(v))
		}
	}
	*atFloat32(&lanes[0], 0) = sum
	kernel.Leave()
}

// addFourSquaresBFloat16 is addSquaresBFloat16 for four buffers of n elements.
func addFourSquaresBFloat16(lanes *[4][widest]float32, x0, x1, x2, x3 *uint16, n int, fused bool) {
	a0, a1 := *atFloat32(&lanes[0][0], 0), *atFloat32(&lanes[1][0], 0)
	a2, a3 := *atFloat32(&lanes[2][0], 0), *atFloat32(&lanes[3][0], 0)
	if fused {
		for i := 0; i < n; i += 8 {
			v0, v1, v2, v3 := loadBFloat16(x0, i), loadBFloat16(x1, i), loadBFloat16(x2, i), loadBFloat16(x3, i)
			a0, a1, a2, a3 = v0.MulAdd(v0, a0), v1.MulAdd(v1, a1), v2.MulAdd(v2, a2), v3.MulAdd(v3, a3)
		}
	} else {
		for i := 0; i < n; i += 8 {
			v0, v1, v2, v3 := loadBFloat16(x0, i), loadBFloat16(x1, i), loadBFloat16(x2, i), loadBFloat16(x3, i)
			a0, a1, a2, a3 = a0.Add(v0.Mul(v0)), a1.Add(v1.Mul(v1)), a2.Add(v2.Mul(v2)), a3.Add(v3.Mul(v3))
		}
	}
	*atFloat32(&lanes[0][0], 0), *atFloat32(&lanes[1][0], 0) = a0, a1
	*atFloat32(&lanes[2][0], 0), *atFloat32(&lanes[3][0], 0) = a2, a3
	kernel.Leave()
}
