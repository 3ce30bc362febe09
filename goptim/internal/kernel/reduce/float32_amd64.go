//go:build goexperiment.simd

package reduce

import (
	"simd/archsimd"
	"unsafe"

	"github.com/goptim/goptim/goptim/internal/kernel"
)

// at points to the vector that begins at element i.
//
//go:nocheckptr
func atFloat32(x *float32, i int) *archsimd.Float32x8 {
	return (*archsimd.Float32x8)(unsafe.Add(unsafe.Pointer(x), uintptr(i)*unsafe.Sizeof(*x)))
}

func addSquaresFloat32(lanes *[widest]float32, x []float32, fused bool) {
	sum, at := *atFloat32(&lanes[0], 0), unsafe.SliceData(x)
	if fused {
		for i := 0; i < len(x); i += sum.Len() {
			v := *atFloat32(at, i)
			sum = v.MulAdd(v, sum)
		}
	} else {
		for i := 0; i < len(x); i += sum.Len() {
			v := *atFloat32(at, i)
			sum = sum.Add(v.Mul(v))
		}
	}
	*atFloat32(&lanes[0], 0) = sum
	kernel.Leave()
}

// addFourSquaresFloat32 is addSquaresFloat32 for four buffers of n elements.
func addFourSquaresFloat32(lanes *[4][widest]float32, x0, x1, x2, x3 *float32, n int, fused bool) {
	a0, a1 := *atFloat32(&lanes[0][0], 0), *atFloat32(&lanes[1][0], 0)
	a2, a3 := *atFloat32(&lanes[2][0], 0), *atFloat32(&lanes[3][0], 0)
	if fused {
		for i := 0; i < n; i += a0.Len() {
			v0, v1, v2, v3 := *atFloat32(x0, i), *atFloat32(x1, i), *atFloat32(x2, i), *atFloat32(x3, i)
			a0, a1, a2, a3 = v0.MulAdd(v0, a0), v1.MulAdd(v1, a1), v2.MulAdd(v2, a2), v3.MulAdd(v3, a3)
		}
	} else {
		for i := 0; i < n; i += a0.Len() {
			v0, v1, v2, v3 := *atFloat32(x0, i), *atFloat32(x1, i), *atFloat32(x2, i), *atFloat32(x3, i)
			a0, a1, a2, a3 = a0.Add(v0.Mul(v0)), a1.Add(v1.Mul(v1)), a2.Add(v2.Mul(v2)), a3.Add(v3.Mul(v3))
		}
	}
	*atFloat32(&lanes[0][0], 0), *atFloat32(&lanes[1][0], 0) = a0, a1
	*atFloat32(&lanes[2][0], 0), *atFloat32(&lanes[3][0], 0) = a2, a3
	kernel.Leave()
}

// matrixSquaresFloat32 processes groups of four rows, and returns the number of processed rows.
func matrixSquaresFloat32(x, rows, columns []float32, o Order) int {
	c := len(columns)
	var lanes [4][widest]float32
	i := 0
	for ; i+4 <= len(rows); i += 4 {
		block := x[i*c:][:4*c]
		whole := fourRowsFloat32(&lanes, block, columns, o.Fused)
		kernel.Leave()
		for k := range 4 {
			rest := block[k*c:][whole:c]
			for j, x := range rest {
				columns[whole+j] = addSquare(columns[whole+j], x, o)
			}
			rows[i+k] = finish(&lanes[k], rest, o)
		}
	}
	return i
}

func fourRowsFloat32(lanes *[4][widest]float32, x, columns []float32, fused bool) int {
	c := len(columns)
	x0, cols := unsafe.SliceData(x), unsafe.SliceData(columns)
	x1, x2, x3 := &x[c], &x[2*c], &x[3*c]
	var a0, a1, a2, a3 archsimd.Float32x8
	j := 0
	if fused {
		for ; j+a0.Len() <= c; j += a0.Len() {
			v0, v1, v2, v3 := *atFloat32(x0, j), *atFloat32(x1, j), *atFloat32(x2, j), *atFloat32(x3, j)
			a0, a1, a2, a3 = v0.MulAdd(v0, a0), v1.MulAdd(v1, a1), v2.MulAdd(v2, a2), v3.MulAdd(v3, a3)
			*atFloat32(cols, j) = v3.MulAdd(v3, v2.MulAdd(v2, v1.MulAdd(v1, v0.MulAdd(v0, *atFloat32(cols, j)))))
		}
	} else {
		for ; j+a0.Len() <= c; j += a0.Len() {
			v0, v1, v2, v3 := *atFloat32(x0, j), *atFloat32(x1, j), *atFloat32(x2, j), *atFloat32(x3, j)
			v0, v1, v2, v3 = v0.Mul(v0), v1.Mul(v1), v2.Mul(v2), v3.Mul(v3)
			a0, a1, a2, a3 = a0.Add(v0), a1.Add(v1), a2.Add(v2), a3.Add(v3)
			*atFloat32(cols, j) = atFloat32(cols, j).Add(v0).Add(v1).Add(v2).Add(v3)
		}
	}
	*atFloat32(&lanes[0][0], 0), *atFloat32(&lanes[1][0], 0) = a0, a1
	*atFloat32(&lanes[2][0], 0), *atFloat32(&lanes[3][0], 0) = a2, a3
	return j
}

func addFoursFloat32(sums *[4][widest]float32, x []float32) {
	a0, a1 := *atFloat32(&sums[0][0], 0), *atFloat32(&sums[1][0], 0)
	a2, a3 := *atFloat32(&sums[2][0], 0), *atFloat32(&sums[3][0], 0)
	at, w := unsafe.SliceData(x), a0.Len()
	for i := 0; i < len(x); i += 4 * w {
		a0, a1 = a0.Add(*atFloat32(at, i)), a1.Add(*atFloat32(at, i+w))
		a2, a3 = a2.Add(*atFloat32(at, i+2*w)), a3.Add(*atFloat32(at, i+3*w))
	}
	*atFloat32(&sums[0][0], 0), *atFloat32(&sums[1][0], 0) = a0, a1
	*atFloat32(&sums[2][0], 0), *atFloat32(&sums[3][0], 0) = a2, a3
	kernel.Leave()
}

// moveUpFloat32 adds lanes to others and clears them.
func moveUpFloat32(to, from *[4][widest]float32) {
	t, f := &to[0][0], &from[0][0]
	var zero archsimd.Float32x8
	for i := 0; i < 4*widest; i += zero.Len() {
		*atFloat32(t, i) = atFloat32(t, i).Add(*atFloat32(f, i))
		*atFloat32(f, i) = zero
	}
	kernel.Leave()
}

func addToFloat32(sum, x []float32) int {
	s, at := unsafe.SliceData(sum), unsafe.SliceData(x)
	var v archsimd.Float32x8
	i := 0
	for ; i+v.Len() <= len(sum); i += v.Len() {
		*atFloat32(s, i) = atFloat32(s, i).Add(*atFloat32(at, i))
	}
	kernel.Leave()
	return i
}
