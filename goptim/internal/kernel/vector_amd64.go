//go:build goexperiment.simd

package kernel

import (
	"os"
	"simd"
	"simd/archsimd"
	"strings"
)

// There are no kernels for 128 bits. CPUs with FMA but without AVX2, AMD's of 2012 to 2014, process one element at a time.
// torch does not use FMA there, so no kernel would have its exact results.
var widths = []int{256, 512}

// VectorBits is the vector width of the kernels; 0 if the CPU does not have AVX2, or if GODEBUG=simd=0.
func VectorBits() int { return vectorBits }

var vectorBits = chosen(os.Getenv("GODEBUG"), simd.Emulated(), simd.VectorBitSize(), archsimd.X86.FMA(), archsimd.X86.AVX2(), archsimd.X86.AVX512())

// chosen returns the width that GODEBUG sets, or 256 instead of 128; by default the largest width of the CPU. Package simd's
// default is at most half of it on CPUs without VPCLMULQDQ, such as Intel's before Ice Lake. Kernels do not need it.
func chosen(godebug string, emulated bool, bits int, fma, avx2, avx512 bool) int {
	asked := false
	for setting := range strings.SplitSeq(godebug, ",") {
		asked = asked || strings.HasPrefix(setting, "simd=")
	}
	switch {
	case !fma || !avx2 || asked && emulated:
		return 0
	case asked:
		return max(bits, 256)
	case avx512:
		return 512
	}
	return 256
}
