package kernel_test

import (
	"math"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

type float interface{ float32 | float64 }

// A variant is one way through a kernel: how many columns it takes, of which the second is the gradient, and the call.
type variant[T float] struct {
	name    string
	columns int
	update  func(c [][]T)
}

func variants32() []variant[float32] {
	adam := f32.Adam{Decay: .9996, C1: .1, Beta2: .999, C2: .001, Step: -1e-3, BC2Sqrt: .5, Eps: 1e-8}
	coupled := adam
	coupled.WeightDecay, coupled.Decay, coupled.Maximize, coupled.C1 = .01, 1, true, .6
	sgd := f32.SGD{WeightDecay: .01, Momentum: .9, C: .7, Nesterov: true, Step: -.1}
	return []variant[float32]{
		{"adam", 4, func(c [][]float32) { f32.UpdateAdam(&adam, c[0], c[1], c[2], c[3], nil) }},
		{"adam coupled", 4, func(c [][]float32) { f32.UpdateAdam(&coupled, c[0], c[1], c[2], c[3], nil) }},
		{"amsgrad", 5, func(c [][]float32) { f32.UpdateAdam(&adam, c[0], c[1], c[2], c[3], c[4]) }},
		{"sgd", 2, func(c [][]float32) { f32.UpdateSGD(&sgd, c[0], c[1], nil, false) }},
		{"sgd momentum", 3, func(c [][]float32) { f32.UpdateSGD(&sgd, c[0], c[1], c[2], false) }},
		{"sgd first", 3, func(c [][]float32) { f32.UpdateSGD(&sgd, c[0], c[1], c[2], true) }},
	}
}

func variants64() []variant[float64] {
	adam := f64.Adam{Decay: .9996, C1: .1, Beta2: .999, C2: .001, Step: -1e-3, BC2Sqrt: .5, Eps: 1e-8}
	coupled := adam
	coupled.WeightDecay, coupled.Decay, coupled.Maximize, coupled.C1 = .01, 1, true, .6
	sgd := f64.SGD{WeightDecay: .01, Momentum: .9, C: .7, Nesterov: true, Step: -.1}
	return []variant[float64]{
		{"adam", 4, func(c [][]float64) { f64.UpdateAdam(&adam, c[0], c[1], c[2], c[3], nil) }},
		{"adam coupled", 4, func(c [][]float64) { f64.UpdateAdam(&coupled, c[0], c[1], c[2], c[3], nil) }},
		{"amsgrad", 5, func(c [][]float64) { f64.UpdateAdam(&adam, c[0], c[1], c[2], c[3], c[4]) }},
		{"sgd", 2, func(c [][]float64) { f64.UpdateSGD(&sgd, c[0], c[1], nil, false) }},
		{"sgd momentum", 3, func(c [][]float64) { f64.UpdateSGD(&sgd, c[0], c[1], c[2], false) }},
		{"sgd first", 3, func(c [][]float64) { f64.UpdateSGD(&sgd, c[0], c[1], c[2], true) }},
	}
}

// longest is beyond three of the widest vectors of float32, and a few more elements.
const longest = 3*16 + 5

// fill makes every element of every column another number, the same in every run; second moments are positive, and
// their maxima so small that every step raises them.
func fill[T float](columns [][]T) {
	for k, c := range columns {
		for i := range c {
			c[i] = T(math.Sin(float64(1+i*7+k*131))) * T(k+1)
			if k > 2 {
				c[i] *= c[i]
			}
			if k > 3 {
				c[i] *= 1e-12
			}
		}
	}
}

func TestGuards(t *testing.T) {
	t.Run("float32", func(t *testing.T) { testGuards(t, variants32()) })
	t.Run("float64", func(t *testing.T) { testGuards(t, variants64()) })
}

// testGuards runs every kernel on columns between guard values, at every length and alignment: it must write all
// elements, nothing beside them, and not the gradient.
func testGuards[T float](t *testing.T, variants []variant[T]) {
	const guard, around = 12345, 17
	for _, v := range variants {
		for n := range longest + 1 {
			before := make([][]T, v.columns)
			columns := make([][]T, v.columns)
			whole := make([][]T, v.columns)
			for k := range columns {
				whole[k] = make([]T, around+k+n+around)
				for i := range whole[k] {
					whole[k][i] = guard
				}
				columns[k] = whole[k][around+k:][:n]
			}
			fill(columns)
			for k := range columns {
				before[k] = append([]T(nil), columns[k]...)
			}
			v.update(columns)
			for k := range columns {
				for i, x := range whole[k] {
					if i < around+k || i >= around+k+n {
						require.Equal(t, T(guard), x, "%s, %d elements: column %d is written at %d", v.name, n, k, i-around-k)
					}
				}
				for i := range columns[k] {
					if k == 1 {
						require.Equal(t, before[k][i], columns[k][i], "%s, %d elements: the gradient is written at %d", v.name, n, i)
					} else {
						require.NotEqual(t, before[k][i], columns[k][i], "%s, %d elements: column %d is not written at %d", v.name, n, k, i)
					}
				}
			}
		}
	}
}

func TestSplit(t *testing.T) {
	t.Run("float32", func(t *testing.T) { testSplit(t, variants32()) })
	t.Run("float64", func(t *testing.T) { testSplit(t, variants64()) })
}

// testSplit holds every kernel on whole columns against the same kernel on each element alone: the bits do not depend
// on how the elements fall into vectors.
func testSplit[T float](t *testing.T, variants []variant[T]) {
	for _, v := range variants {
		for n := range longest + 1 {
			whole, single := make([][]T, v.columns), make([][]T, v.columns)
			for k := range whole {
				whole[k], single[k] = make([]T, n), make([]T, n)
			}
			fill(whole)
			fill(single)
			v.update(whole)
			for i := range n {
				element := make([][]T, v.columns)
				for k := range element {
					element[k] = single[k][i : i+1]
				}
				v.update(element)
			}
			require.Equal(t, single, whole, "%s, %d elements", v.name, n)
		}
	}
}

func TestVectorBits(t *testing.T) {
	assert.Contains(t, []int{0, 128, 256, 512}, kernel.VectorBits())
	t.Logf("vectors of %d bits", kernel.VectorBits())
	kernel.Leave()
}

func bytes[T float](n int) int { return n * int(unsafe.Sizeof(T(0))) }
