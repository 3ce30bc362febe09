//go:build goexperiment.simd

package kernel

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestChosen(t *testing.T) {
	for _, c := range []struct {
		godebug           string
		emulated          bool
		bits              int
		fma, avx2, avx512 bool
		expected          int
	}{
		{"", false, 512, true, true, true, 512},
		{"", false, 128, true, true, true, 512}, // AVX-512 without VPCLMULQDQ
		{"", false, 128, true, true, false, 256},
		{"", false, 128, true, false, false, 0},  // AVX without AVX2
		{"", false, 128, false, false, false, 0}, // AVX without FMA
		{"", true, 128, false, false, false, 0},
		{"simd=+128", false, 128, true, true, true, 256},
		{"simd=128", false, 128, true, true, false, 256},
		{"simd=128", false, 128, true, false, false, 0},
		{"gctrace=1,simd=256", false, 256, true, true, true, 256},
		{"simd=0", true, 128, true, true, true, 0},
		{"simd=+", false, 512, true, true, true, 512},
		{"nosimd=0", false, 128, true, true, false, 256},
	} {
		assert.Equal(t, c.expected, chosen(c.godebug, c.emulated, c.bits, c.fma, c.avx2, c.avx512), "%+v", c)
	}
}
