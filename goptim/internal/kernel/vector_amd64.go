//go:build goexperiment.simd

package kernel

import (
	"os"
	"simd"
	"simd/archsimd"
	"strings"
)

// There are no kernels for 128 bits. A CPU that has FMA but not AVX2, as AMD's of 2012 to 2014, takes one element at a time;
// torch does not use FMA there, so that no kernel would have its bits.
var widths = []int{256, 512}

// VectorBits is the width of the vectors that kernels use; 0 if the CPU has no AVX2, or GODEBUG=simd=0 asks for none.
func VectorBits() int { return vectorBits }

var vectorBits = chosen(os.Getenv("GODEBUG"), simd.Emulated(), simd.VectorBitSize(), archsimd.X86.FMA(), archsimd.X86.AVX2(), archsimd.X86.AVX512())

// chosen is the width that GODEBUG asks package simd for, or 256 for 128; else the widest that the CPU has. Package simd's
// own default is half that or less on a CPU without VPCLMULQDQ, as Intel's before Ice Lake; kernels do not need it.
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
