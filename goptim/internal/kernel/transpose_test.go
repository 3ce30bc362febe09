package kernel_test

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
	lane32 "github.com/goptim/goptim/goptim/internal/kernel/lane/f32"
	lane64 "github.com/goptim/goptim/goptim/internal/kernel/lane/f64"
)

func TestTranspose(t *testing.T) {
	t.Run("float32", testTranspose[float32])
	t.Run("float64", testTranspose[float64])
}

// testTranspose lays matrices of every small shape side by side, and back.
func testTranspose[T kernel.Float](t *testing.T) {
	const guard = -1
	w := kernel.Lanes[T]()
	for rows := 1; rows <= 15; rows++ {
		for cols := 1; cols <= 15; cols++ {
			size := rows * cols
			transpose := kernel.TransposeOf(rows, cols, make([]T, w*size))
			for n := 1; n <= w; n++ {
				src, dst, back := make([]T, n*size), make([]T, w*size+1), make([]T, n*size+1)
				for i := range src {
					src[i] = T(i)
				}
				dst[w*size], back[n*size] = guard, guard
				transpose.Across(dst, src, n)
				want := make([]T, w*size)
				for i := range want {
					want[i] = src[min(i%w, n-1)*size+i/w]
				}
				require.Equal(t, want, dst[:w*size], "%d x %d, %d matrices", rows, cols, n)
				transpose.Back(back, dst, n)
				require.Equal(t, src, back[:n*size], "%d x %d, %d matrices", rows, cols, n)
				require.Equal(t, []T{guard, guard}, []T{dst[w*size], back[n*size]}, "%d x %d, %d matrices", rows, cols, n)
			}
		}
	}
}

func TestAdafactorSmall(t *testing.T) {
	t.Run("float32", func(t *testing.T) { testAdafactorSmall(t, f32.AdafactorSmall, lane32.AdafactorSmall) })
	t.Run("float64", func(t *testing.T) { testAdafactorSmall(t, f64.AdafactorSmall, lane64.AdafactorSmall) })
}

// testAdafactorSmall holds matrices one a lane against one after the other.
func testAdafactorSmall[T kernel.Float](t *testing.T, small, single kernel.Func[kernel.Adafactor, T]) {
	random := rand.New(rand.NewPCG(1, 2))
	w := kernel.Lanes[T]()
	for rows := 1; rows <= 15; rows++ {
		for cols := 1; cols <= 15; cols++ {
			h := &kernel.Adafactor{
				Sign: -1, W: kernel.WeightOf[T](.3), Eps1: 1e-3, EpsSq: 1e-6, Rows: float64(rows), Cols: float64(cols), Fused: float64(rows % 2),
			}
			of := func(size int, f func() float64) []T { // element i of matrix lane at i*w + lane
				s := make([]T, size*w)
				for i := range s {
					s[i] = T(f())
				}
				return s
			}
			u, g := of(rows*cols, random.ExpFloat64), of(rows*cols, random.NormFloat64)
			row, col := of(rows, random.ExpFloat64), of(cols, random.ExpFloat64)
			one := func(s []T, lane int) []T {
				x := make([]T, len(s)/w)
				for i := range x {
					x[i] = s[i*w+lane]
				}
				return x
			}
			var want [][3][]T
			for lane := range w {
				m := [3][]T{one(u, lane), one(row, lane), one(col, lane)}
				single(h, m[0], one(g, lane), [3][]T{m[1], m[2]})
				want = append(want, m)
			}
			small(h, u, g, [3][]T{row, col})
			kernel.Leave()
			for lane, m := range want {
				require.Equal(t, m, [3][]T{one(u, lane), one(row, lane), one(col, lane)}, "%d x %d, lane %d", rows, cols, lane)
			}
		}
	}
}
