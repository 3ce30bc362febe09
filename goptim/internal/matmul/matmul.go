// Package matmul multiplies matrices of float32 elements on several threads, and rounds the products to bfloat16. Matrices
// are row-major.
package matmul

import (
	"sync"
	"unsafe"

	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
)

// A Multiplier computes products, one at a time. It exists so that a product does not allocate.
type Multiplier struct {
	out, a, b, c []float32
	inner, cols  int
	alpha, beta  float32
	row          [1]engine.Row
}

// Gemm computes out = alpha·AB + beta·C, as BLAS's function of that name, and rounds each element to bfloat16 once. A has
// rows x inner elements, B has inner x cols, and out and C have rows x cols. A nil C is zeros. An element's products are
// summed in order in float32, with FMA, whatever the number of threads. The error is a panic's.
func (m *Multiplier) Gemm(out, a, b, c []float32, rows, inner, cols int, alpha, beta float64, threads int) error {
	m.out, m.a, m.b, m.c, m.inner, m.cols, m.alpha, m.beta = out, a, b, c, inner, cols, float32(alpha), float32(beta)
	// The engine divides the rows·inner·cols multiplications into parts; an element belongs to the part of its first one.
	m.row[0] = engine.Row{
		N:     int64(rows) * int64(inner) * int64(cols),
		Types: engine.TypesOf(engine.Float32, engine.None),
		Param: engine.Address(unsafe.Pointer(unsafe.SliceData(out))),
	}
	return engine.Run(m, m.row[:], threads, nil)
}

// A block of B has so many rows and columns. It stays in a core's cache while it is multiplied by all rows of A in a part.
const blockRows, blockCols = 128, 512

// Update implements engine.Pass.
func (m *Multiplier) Update(part engine.Part) {
	lo, hi := (part.Lo+m.inner-1)/m.inner, (part.Hi+m.inner-1)/m.inner
	if lo >= hi {
		return
	}
	s := scratchPool.Get().(*scratch)
	defer scratchPool.Put(s)
	clear(m.out[lo:hi])
	for col := 0; col < m.cols; col += blockCols {
		for k := 0; k < m.inner; k += blockRows {
			for row := lo / m.cols; row*m.cols < hi; row++ {
				from, to := max(lo, row*m.cols+col), min(hi, row*m.cols+min(col+blockCols, m.cols))
				if from < to {
					m.accumulate(s, row, k, min(k+blockRows, m.inner), from, to)
				}
			}
		}
	}
	for i := lo; i < hi; i++ {
		x := m.alpha * m.out[i]
		if m.c != nil {
			x += float32(m.beta * m.c[i])
		}
		m.out[i] = BFloat16(x)
	}
}

// scratch is what accumulate needs, on the heap as the arguments of kernel.Apply must be.
type scratch struct {
	kernel.Combine
	tail [5][]float32 // vectors for the tails of a row of the product and of four rows of B
}

var scratchPool = sync.Pool{New: func() any {
	s := new(scratch)
	for i := range s.tail {
		s.tail[i] = make([]float32, kernel.Lanes[float32]())
	}
	return s
}}

// accumulate adds to elements from to to of the product, which are in one row, the products of elements k to end of that row
// of A with those rows of B.
func (m *Multiplier) accumulate(s *scratch, row, k, end, from, to int) {
	a := m.a[row*m.inner:][:m.inner]
	at, n := from-row*m.cols, to-from
	whole := n - n%kernel.Lanes[float32]()
	for ; k < end; k += 4 {
		var rows [4][]float32
		for i := range rows {
			s.A[i], rows[i] = 0, rows[0]
			if k+i < end {
				s.A[i], rows[i] = float64(a[k+i]), m.b[(k+i)*m.cols+at:][:n]
			}
		}
		kernel.Apply(f32.Combine, &s.Combine, m.out[from:from+whole], rows[0][:whole], [4][]float32{rows[1], rows[2], rows[3]})
		if whole == n {
			continue
		}
		// Apply would write its copy of the tail back to B, which other threads read.
		copy(s.tail[0], m.out[from+whole:to])
		for i, r := range rows {
			copy(s.tail[1+i], r[whole:])
		}
		kernel.Apply(f32.Combine, &s.Combine, s.tail[0], s.tail[1], [4][]float32{s.tail[2], s.tail[3], s.tail[4]})
		copy(m.out[from+whole:to], s.tail[0])
	}
}

// Transpose sets to, of cols x rows elements, to the transpose of from, in squares that stay in cache.
func Transpose(to, from []float32, rows, cols int) {
	const side = 32
	for i0 := 0; i0 < rows; i0 += side {
		for j0 := 0; j0 < cols; j0 += side {
			for i := i0; i < min(i0+side, rows); i++ {
				for j := j0; j < min(j0+side, cols); j++ {
					to[j*rows+i] = from[i*cols+j]
				}
			}
		}
	}
}
