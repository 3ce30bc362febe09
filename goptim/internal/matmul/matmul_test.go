package matmul

import (
	"math"
	"math/big"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/goptim/goptim/goptim/internal/engine"
)

// rounded is x as a bfloat16, whose significand has 8 bits.
func rounded(x float64) float32 {
	y, _ := new(big.Float).SetPrec(8).SetMode(big.ToNearestEven).SetFloat64(x).Float32()
	return y
}

// integers are small ones, whose products and sums float32 represents exactly.
func integers(r *rand.Rand, n int) []float32 {
	s := make([]float32, n)
	for i := range s {
		s[i] = float32(r.IntN(33) - 16)
	}
	return s
}

func normals(r *rand.Rand, n int) []float32 {
	s := make([]float32, n)
	for i := range s {
		s[i] = float32(r.NormFloat64())
	}
	return s
}

// expected is the product in float64, rounded once.
func expected(a, b, c []float32, rows, inner, cols int, alpha, beta float64) []float32 {
	out := make([]float32, rows*cols)
	for i := range rows {
		for j := range cols {
			sum := 0.0
			for k := range inner {
				sum += float64(a[i*inner+k]) * float64(b[k*cols+j])
			}
			sum *= alpha
			if c != nil {
				sum += beta * float64(c[i*cols+j])
			}
			out[i*cols+j] = rounded(sum)
		}
	}
	return out
}

func TestGemm(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var m Multiplier
	for _, shape := range [][3]int{{1, 1, 1}, {1, 5, 17}, {3, 4, 16}, {7, 129, 8}, {16, 16, 16}, {2, 131, 515}, {33, 257, 1030}} {
		rows, inner, cols := shape[0], shape[1], shape[2]
		a, b, c := integers(r, rows*inner), integers(r, inner*cols), integers(r, rows*cols)
		out := normals(r, rows*cols) // to be overwritten
		require.NoError(t, m.Gemm(out, a, b, nil, rows, inner, cols, 1, 0, 1))
		require.Equal(t, expected(a, b, nil, rows, inner, cols, 1, 0), out, "%v", shape)
		require.NoError(t, m.Gemm(out, a, b, c, rows, inner, cols, .5, -2, 1))
		require.Equal(t, expected(a, b, c, rows, inner, cols, .5, -2), out, "%v with C", shape)
	}
}

func TestGemmOnAnyNumberOfThreads(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	const rows, inner, cols = 91, 83, 101 // more multiplications than run on one thread
	a, b, c := normals(r, rows*inner), normals(r, inner*cols), normals(r, rows*cols)
	kept := slices.Concat(a, b, c)
	var m Multiplier
	one, several := make([]float32, rows*cols), make([]float32, rows*cols)
	require.NoError(t, m.Gemm(one, a, b, c, rows, inner, cols, .5, 2, 1))
	for threads := 2; threads <= 5; threads++ {
		require.NoError(t, m.Gemm(several, a, b, c, rows, inner, cols, .5, 2, threads))
		require.Equal(t, one, several, "%d threads", threads)
	}
	require.Equal(t, kept, slices.Concat(a, b, c), "the factors must not change")
}

// TestAnySplit divides the multiplications at random places, in any order.
func TestAnySplit(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for range 50 {
		rows, inner, cols := 1+r.IntN(40), 1+r.IntN(40), 1+r.IntN(70)
		n := rows * inner * cols
		m := Multiplier{
			a: normals(r, rows*inner), b: normals(r, inner*cols), c: normals(r, rows*cols),
			inner: inner, cols: cols, alpha: .5, beta: 2,
		}
		whole, split := make([]float32, rows*cols), make([]float32, rows*cols)
		m.out = whole
		m.Update(engine.Part{Hi: n})
		m.out = split
		cuts := []int{0, n}
		for range r.IntN(9) {
			cuts = append(cuts, r.IntN(n+1))
		}
		slices.Sort(cuts)
		for _, i := range r.Perm(len(cuts) - 1) {
			if cuts[i] < cuts[i+1] {
				m.Update(engine.Part{Lo: cuts[i], Hi: cuts[i+1]})
			}
		}
		require.Equal(t, whole, split, "%d x %d x %d", rows, inner, cols)
	}
}

func TestTranspose(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	for _, shape := range [][2]int{{1, 1}, {1, 40}, {33, 2}, {70, 65}} {
		rows, cols := shape[0], shape[1]
		from, to := normals(r, rows*cols), make([]float32, rows*cols)
		Transpose(to, from, rows, cols)
		for i := range rows {
			for j := range cols {
				require.Equal(t, from[i*cols+j], to[j*rows+i], "%v: %d, %d", shape, i, j)
			}
		}
	}
}

func TestBFloat16(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 10))
	for range 10_000 {
		x := math.Float32frombits(r.Uint32() &^ 0x40000000) // not near an overflow, which big.Float does not have
		if x != x || math.Abs(float64(x)) < 0x1p-126 {
			continue
		}
		require.Equal(t, rounded(float64(x)), BFloat16(x), "%x", x)
	}
	inf := float32(math.Inf(1))
	for x, y := range map[float32]float32{
		1 + 0x1p-8: 1, 1 + 3*0x1p-8: 1 + 0x1p-6, // ties
		math.MaxFloat32: inf, inf: inf, -inf: -inf, 0x1p-149: 0, 0x1p-133: 0x1p-133,
	} {
		assert.Equal(t, y, BFloat16(x), "%x", x)
	}
	for _, bits := range []uint32{0x7f800001, 0x7fffffff, 0xffffffff} {
		x := BFloat16(math.Float32frombits(bits))
		assert.NotEqual(t, x, x, "NaN %#x", bits)
	}
}
