package cmath_test

import (
	"math"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/goptim/goptim/bindings/internal/cmath"
)

// Each result is Python's x ** y, the float64 nearest to the exact power. math.Pow returns an adjacent one.
func TestPowHasPythonsBits(t *testing.T) {
	for _, c := range []struct{ x, y, want float64 }{
		{0.9, 4, 0x1.4fec56d5cfaadp-01},
		{0.9, 7, 0x1.e9c6a99d1cdbfp-02},
		{0.99, 3, 0x1.f0cb07d0aed9ap-01},
		{0.999, 10, 0x1.fae7299c256e3p-01},
	} {
		assert.Equal(t, c.want, cmath.Pow(c.x, c.y), "%v ** %v", c.x, c.y)
		assert.NotEqual(t, c.want, math.Pow(c.x, c.y), "math.Pow(%v, %v) is right too: choose another case", c.x, c.y)
	}
	assert.Equal(t, 1.0, cmath.Pow(0, 0))
	assert.Equal(t, math.Inf(1), cmath.Pow(0, -1))
	assert.True(t, math.IsNaN(cmath.Pow(-1, 0.5)))
}
