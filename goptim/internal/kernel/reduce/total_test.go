package reduce

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestTotalInBlocks compares sums of elements that are added at once and in blocks.
func TestTotalInBlocks(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{0, 1, 3, 7, 8, 31, 33, 64, 65, 500, 1003, 4096, 70_001, 300_007} {
		x := make([]float32, n)
		for i := range x {
			x[i] = r.Float32()
		}
		for _, size := range []int{64, 640, 2048} {
			total := TotalOf[float32](n, Order{})
			for lo := 0; lo < n; lo += size {
				total.Next(x[lo:min(lo+size, n)])
			}
			require.Equal(t, Sum(x, Order{}), total.End(), "%d elements in blocks of %d", n, size)
		}
	}
}
