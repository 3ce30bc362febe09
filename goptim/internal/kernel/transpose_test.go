package kernel_test

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/reduce"
)

func TestTranspose(t *testing.T) {
	t.Run("float32", testTranspose[float32])
	t.Run("float64", testTranspose[float64])
}

// testTranspose interleaves matrices of every small shape, some vectors of them, and reverses it.
func testTranspose[T kernel.Float](t *testing.T) {
	const guard = -1
	w := kernel.Lanes[T]()
	for rows := 1; rows <= 15; rows++ {
		for cols := 1; cols <= 15; cols++ {
			size := rows * cols
			transpose := kernel.TransposeOf(rows, cols, make([]T, w*size))
			for n := 1; n <= 2*w+1; n++ {
				lanes := (n + w - 1) / w * w
				src, dst, back := make([]T, n*size), make([]T, lanes*size+1), make([]T, n*size+1)
				for i := range src {
					src[i] = T(i)
				}
				dst[lanes*size], back[n*size] = guard, guard
				transpose.Across(dst, src, n)
				want := make([]T, lanes*size)
				for i := range want {
					matrix := i/(w*size)*w + i%w
					want[i] = src[min(matrix, n-1)*size+i/w%size]
				}
				require.Equal(t, want, dst[:lanes*size], "%d x %d, %d matrices", rows, cols, n)
				transpose.Back(back, dst, n)
				require.Equal(t, src, back[:n*size], "%d x %d, %d matrices", rows, cols, n)
				require.Equal(t, []T{guard, guard}, []T{dst[lanes*size], back[n*size]}, "%d x %d, %d matrices", rows, cols, n)
			}
		}
	}
}

func TestAdafactorSmall(t *testing.T) {
	onCopies(t, testAdafactorSmall[float32], testAdafactorSmall[float64])
}

// testAdafactorSmall compares two vectors of matrices, one per lane, with single matrices, processed like large ones.
func testAdafactorSmall[T kernel.Float](t *testing.T, k kernels) {
	of := funcOf[kernel.Adafactor, T]
	small, mean, product := of(k, "AdafactorSmall"), of(single[T](), "AdafactorMean"), of(single[T](), "AdafactorProduct")
	random := rand.New(rand.NewPCG(1, 2))
	w := max(1, k.bits/8/bytes[T](1))
	for rows := 1; rows <= 15; rows++ {
		for cols := 1; cols <= 15; cols++ {
			for _, fused := range []float64{0, 1} {
				h := &kernel.Adafactor{
					Sign: -1, W: kernel.WeightOf[T](.3), Eps1: 1e-3, EpsSq: 1e-6, Rows: float64(rows), Cols: float64(cols), Fused: fused,
				}
				of := func(size int, f func() float64) []T { // element i of matrix m at m/w*w*size + i*w + m%w
					s := make([]T, 2*w*size)
					for i := range s {
						s[i] = T(f())
					}
					return s
				}
				g, row, col := of(rows*cols, random.NormFloat64), of(rows, random.ExpFloat64), of(cols, random.ExpFloat64)
				one := func(s []T, m int) []T {
					size := len(s) / (2 * w)
					x := make([]T, size)
					for i := range x {
						x[i] = s[m/w*w*size+i*w+m%w]
					}
					return x
				}
				var want [][3][]T
				for m := range 2 * w {
					g, row, col, u := one(g, m), one(row, m), one(col, m), make([]T, rows*cols)
					rowSums, colSums := make([]T, rows), make([]T, cols)
					reduce.MatrixSquares(g, rowSums, colSums, reduce.Order{Fused: fused > 0})
					h := *h
					h.N = float64(cols)
					mean(&h, row, rowSums, [4][]T{})
					h.N = float64(rows)
					mean(&h, col, colSums, [4][]T{})
					h.Mean = max(h.Eps1, float64(reduce.Mean(row, 1, reduce.Order{})))
					for i := range u {
						u[i] = row[i/cols] * col[i%cols]
					}
					product(&h, u, g, [4][]T{slices.Clone(u)})
					want = append(want, [3][]T{u, row, col})
				}
				u := slices.Clone(g)
				small(h, u, u, [4][]T{row, col}) // overwrites the gradient
				kernel.Leave()
				for m, x := range want {
					require.Equal(t, x, [3][]T{one(u, m), one(row, m), one(col, m)}, "%d x %d, matrix %d, fused %v", rows, cols, m, fused)
				}
			}
		}
	}
}
