package reduce

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"

	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/lane"
)

// TestNorms compares the norms of several tensors with plain loops, in each order.
func TestNorms(t *testing.T) {
	for i, o := range Orders {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			testNorms[float32](t, o, 8)
			testNorms[float64](t, o, 4)
		})
	}
}

func testNorms[T kernel.Float](t *testing.T, o Order, lanes int) {
	random := rand.New(rand.NewPCG(1, 2))
	if o.Narrow {
		lanes /= 2
	}
	for count := range 12 {
		var tensors [][]T
		for k := range count {
			x := make([]T, random.IntN([]int{4, 40, 400, 3000}[(k+count)%4]))
			for i := range x {
				x[i] = T(random.NormFloat64())
			}
			tensors = append(tensors, x)
		}
		n := Norms[T]{Order: o, Norms: make([]T, count)}
		for i, x := range tensors {
			n.Add(i, x)
		}
		n.Finish()
		for i, x := range tensors {
			require.Equal(t, plainNorm(x, o, lanes), n.Norms[i], "tensor %d of %d, %d elements", i, count, len(x))
			single := Norm[T]{Order: o}
			require.Equal(t, n.Norms[i], single.Of(x))
		}
	}
}

// plainNorm is the definition of an order.
func plainNorm[T kernel.Float](x []T, o Order, lanes int) T {
	if len(x) == 1 {
		return T(math.Abs(float64(x[0])))
	}
	sums, whole := make([]T, lanes), len(x)/lanes*lanes
	for i, x := range x[:whole] {
		sums[i%lanes] = plainAdd(sums[i%lanes], x, o.Fused)
	}
	var sum T
	for _, s := range sums {
		sum += s
	}
	tail := x[whole:]
	for i, x := range tail {
		sum = plainAdd(sum, x, o.Fused || i >= len(tail)/4*4)
	}
	return T(math.Sqrt(float64(sum)))
}

func plainAdd[T kernel.Float](sum, x T, fused bool) T {
	switch {
	case !fused:
		square := T(x * x)
		return sum + square
	case unsafe.Sizeof(x) == 4:
		return T(lane.FMA32(float32(x), float32(x), float32(sum)))
	}
	return T(math.FMA(float64(x), float64(x), float64(sum)))
}

// TestLongNorms adds parts of a tensor that is longer than what is added at a time.
func TestLongNorms(t *testing.T) {
	x := make([]float32, most+1003)
	for i := range x {
		x[i] = float32(i%1009) / 1009
	}
	n := Norms[float32]{Norms: make([]float32, 3)}
	for i, tensor := range [][]float32{x, x[:most-8], x[:100]} {
		n.Add(i, tensor)
	}
	n.Finish()
	require.Equal(t, []float32{plainNorm(x, Order{}, 8), plainNorm(x[:most-8], Order{}, 8), plainNorm(x[:100], Order{}, 8)}, n.Norms)
}
