package newtonschulz

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"gonum.org/v1/gonum/mat"
)

var muon = Options{Coefficients: [3]float64{3.4445, -4.7750, 2.0315}, Eps: 1e-7, Steps: 5}

func normals(r *rand.Rand, n int) []float64 {
	s := make([]float64, n)
	for i := range s {
		s[i] = r.NormFloat64()
	}
	return s
}

// TestOrthogonalize compares with UDVᵀ in float64, where X is UΣVᵀ and D is the polynomial of Σ/‖X‖.
func TestOrthogonalize(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var w Workspace
	for _, shape := range [][2]int{{1, 1}, {1, 9}, {9, 1}, {20, 20}, {40, 65}, {130, 33}} {
		for _, steps := range []int{0, 1, 5} {
			rows, cols := shape[0], shape[1]
			x := normals(r, rows*cols)
			var svd mat.SVD
			require.True(t, svd.Factorize(mat.NewDense(rows, cols, slices.Clone(x)), mat.SVDThin))
			var u, v, expected mat.Dense
			svd.UTo(&u)
			svd.VTo(&v)
			d, norm := svd.Values(nil), mat.Norm(mat.NewDense(rows, cols, x), 2)
			a, b, c := muon.Coefficients[0], muon.Coefficients[1], muon.Coefficients[2]
			for i := range d {
				d[i] /= norm
				for range steps {
					d[i] = a*d[i] + b*d[i]*d[i]*d[i] + c*d[i]*d[i]*d[i]*d[i]*d[i]
				}
			}
			expected.Product(&u, mat.NewDiagDense(len(d), d), v.T())
			o := muon
			o.Steps = steps
			require.NoError(t, Orthogonalize(&w, x, rows, cols, o, 1))
			var off mat.Dense
			off.Sub(mat.NewDense(rows, cols, x), &expected)
			require.Less(t, mat.Norm(&off, 2)/mat.Norm(&expected, 2), .05, "%v, %d steps", shape, steps)
		}
	}
}

func TestOrthogonalizeTheTranspose(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	const rows, cols = 12, 30
	wide, tall := normals(r, rows*cols), make([]float64, rows*cols)
	transpose := func(to, from []float64) {
		for i := range rows {
			for j := range cols {
				to[j*rows+i] = from[i*cols+j]
			}
		}
	}
	transpose(tall, wide)
	var w Workspace
	require.NoError(t, Orthogonalize(&w, tall, cols, rows, muon, 1))
	require.NoError(t, Orthogonalize(&w, wide, rows, cols, muon, 1))
	expected := make([]float64, rows*cols)
	transpose(expected, wide)
	require.Equal(t, expected, tall)
}

func TestOrthogonalizeZeros(t *testing.T) {
	x := make([]float32, 6)
	require.NoError(t, Orthogonalize(new(Workspace), x, 2, 3, muon, 1))
	require.Equal(t, make([]float32, 6), x, "the norm is at least Eps")
}
