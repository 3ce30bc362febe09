package kernel_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32x1"
)

// TestAdafactorConvolutions compares groups of 16 matrices with single matrices, and checks the guard values after them.
func TestAdafactorConvolutions(t *testing.T) {
	const guard = 1.2345e-6
	random := rand.New(rand.NewPCG(1, 2))
	for _, fused := range []float64{0, 1} {
		for _, eps1 := range []float64{0, 0x1p-31, 0x1p-23, 10} {
			for _, scale := range []float64{1, 1e-20, 1e-13, 1e9, 1e15, 1e18, math.NaN(), math.Inf(1)} {
				for _, n := range []int{0, 1, 15, 16, 17, 31, 255, 256, 300} {
					name := fmt.Sprint(fused, eps1, scale, n)
					h := &kernel.Adafactor{
						Sign: -1, W: kernel.WeightOf[float32]([]float64{.3, .7}[n%2]), Eps1: eps1, EpsSq: eps1 * eps1, Rows: 3, Cols: 3, Fused: fused,
					}
					fill := func(size int, f func() float64) []float32 {
						s := make([]float32, size+16)
						for i := range s {
							if i < size {
								s[i] = float32(f())
							} else {
								s[i] = guard
							}
						}
						return s
					}
					g := fill(9*n, func() float64 {
						x := random.NormFloat64()
						if random.IntN(50) == 0 {
							x *= scale
						}
						return x
					})
					small := 1.
					if eps1 < 0x1p-30 && n%16 == 15 { // so that products of variances underflow
						small = 1e-11
						for i := range g[:9*n] {
							g[i] *= 1e-11
						}
					}
					variance := func() float64 { return random.ExpFloat64() * small * small }
					u, row, col := fill(9*n, variance), fill(3*n, variance), fill(3*n, variance)
					wantU, wantRow, wantCol := append([]float32{}, u...), append([]float32{}, row...), append([]float32{}, col...)
					done := kernel.AdafactorConvolutions(h, u[:9*n], g[:9*n], row[:3*n], col[:3*n])
					require.LessOrEqual(t, done, n)
					if kernel.VectorBits() == 512 {
						require.Equal(t, min(n/16*16, 256), done)
					}
					for i := range done {
						f32x1.AdafactorSmall(h, wantU[9*i:][:9], g[9*i:], [4][]float32{wantRow[3*i:][:3], wantCol[3*i:][:3]})
					}
					requireSameBits(t, wantRow, row, name+" row_var")
					requireSameBits(t, wantCol, col, name+" col_var")
					requireSameBits(t, wantU, u, name+" update")
				}
			}
		}
	}
	assert.Zero(t, kernel.AdafactorConvolutions(&kernel.Adafactor{}, make([]float64, 144), make([]float64, 144), make([]float64, 48), make([]float64, 48)))
}

func requireSameBits(t *testing.T, want, got []float32, what string) {
	t.Helper()
	for i := range want {
		if want[i] != want[i] && got[i] != got[i] {
			continue // the instruction decides which of two NaNs it returns
		}
		require.Equal(t, math.Float32bits(want[i]), math.Float32bits(got[i]), "%s: element %d is %v, expected %v", what, i, got[i], want[i])
	}
}
