package lane

import (
	"math"
	"math/big"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestFMA32 compares the float32 fused multiply-add with exact arithmetic, for sums close to the middle between two float32,
// where rounding twice is most likely to differ.
func TestFMA32(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	twice := 0
	for range 200_000 {
		a := math.Float32frombits(random.Uint32())
		b := math.Float32frombits(random.Uint32()&0x00ffffff | 0x3f000000)
		c := math.Float32frombits(random.Uint32())
		if random.IntN(2) == 0 {
			// a*b is half a unit in the last place of c, minus a difference that float64 cannot represent.
			k := float32(1+random.IntN(200)) * 0x1p-23
			a, b = 0x1p-24*(1+k), 1-k
			c = math.Float32frombits(random.Uint32()&0x007fffff | 0x3f800000)
		}
		if a != a || c != c || math.IsInf(float64(a), 0) || math.IsInf(float64(c), 0) {
			continue
		}
		got := FMA32(a, b, c)
		exact := new(big.Float).SetPrec(2000).SetMode(big.ToNearestEven)
		exact.Mul(big.NewFloat(float64(a)), big.NewFloat(float64(b)).SetPrec(2000))
		exact.Add(exact, big.NewFloat(float64(c)))
		want, _ := exact.Float32()
		require.Equal(t, want, got, "%x*%x + %x", a, b, c)
		if float32(math.FMA(float64(a), float64(b), float64(c))) != want {
			twice++
		}
	}
	assert.Positive(t, twice, "no case in which rounding twice would differ")
}

func TestFMA32Special(t *testing.T) {
	inf, nan := float32(math.Inf(1)), float32(math.NaN())
	madd := func(a, b, c float32) float32 { return FMA32(a, b, c) }
	assert.Equal(t, inf, madd(inf, 2, 1))
	assert.Equal(t, -inf, madd(1, 2, -inf))
	assert.Equal(t, inf, madd(math.MaxFloat32, 2, 0))
	assert.True(t, math.IsNaN(float64(madd(inf, 1, -inf))))
	assert.True(t, math.IsNaN(float64(madd(nan, 1, 1))))
	assert.True(t, math.Signbit(float64(madd(-1, 0, float32(math.Copysign(0, -1))))))
	assert.Equal(t, float32(math.SmallestNonzeroFloat32), madd(math.SmallestNonzeroFloat32, 1, 0))
}
