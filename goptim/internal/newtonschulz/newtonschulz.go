// Package newtonschulz orthogonalizes matrices approximately, by the Newton-Schulz iterations of Muon in bfloat16.
package newtonschulz

import (
	"errors"
	"math"
	"slices"

	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/matmul"
)

// Options are those of goptim.MuonOptions.
type Options struct {
	Coefficients [3]float64 // of the quintic polynomial
	Eps          float64    // the least norm that a matrix is divided by
	Steps        int
}

// A Workspace is memory for Orthogonalize, which it keeps for the next matrix. Elements are float32 with values of bfloat16.
type Workspace struct {
	x, next, transposed, gram, square []float32
	multiplier                        matmul.Multiplier
}

// Orthogonalize moves all singular values of a matrix X toward 1. X is rounded to bfloat16, transposed if it has more rows
// than columns, and divided by its norm. Each step then replaces it by aX + (bA + cA²)X, where A is XXᵀ. As in torch, every
// product is rounded to bfloat16. The error is a panic's.
func Orthogonalize[T kernel.Float](w *Workspace, matrix []T, rows, cols int, o Options, threads int) error {
	m, k := min(rows, cols), max(rows, cols)
	w.x, w.next, w.transposed = resize(w.x, m*k), resize(w.next, m*k), resize(w.transposed, m*k)
	w.gram, w.square = resize(w.gram, m*m), resize(w.square, m*m)
	x, next := w.x, w.next
	for i, v := range matrix {
		x[i] = matmul.BFloat16(float32(v))
	}
	if rows > cols {
		matmul.Transpose(w.transposed, x, rows, cols)
		copy(x, w.transposed)
	}
	sum := 0.0
	for _, v := range x {
		sum += float64(v) * float64(v)
	}
	norm := max(matmul.BFloat16(float32(math.Sqrt(sum))), matmul.BFloat16(float32(o.Eps)))
	for i := range x {
		x[i] = matmul.BFloat16(x[i] / norm)
	}
	a, b, c := o.Coefficients[0], o.Coefficients[1], o.Coefficients[2]
	for range o.Steps {
		matmul.Transpose(w.transposed, x, m, k)
		err := errors.Join(
			w.multiplier.Gemm(w.gram, x, w.transposed, nil, m, k, m, 1, 0, threads),
			w.multiplier.Gemm(w.square, w.gram, w.gram, w.gram, m, m, m, c, b, threads),
			w.multiplier.Gemm(next, w.square, x, x, m, m, k, 1, a, threads),
		)
		if err != nil {
			return err
		}
		x, next = next, x
	}
	if rows > cols {
		matmul.Transpose(w.transposed, x, m, k)
		x = w.transposed
	}
	for i, v := range x {
		matrix[i] = T(v)
	}
	return nil
}

// resize returns a slice of n elements, in the memory of s if it is large enough.
func resize[E any](s []E, n int) []E { return slices.Grow(s[:0], n)[:n] }
