//go:build goexperiment.simd

// Package kernel is what the kernels of its subfolders share.
package kernel

import (
	"os"
	"simd"
	"simd/archsimd"
	"strings"
)

// VectorBits is the width of the vectors that kernels use; 0 where there are none, or none that fuse a product and a sum.
func VectorBits() int { return vectorBits }

var vectorBits = chosen(os.Getenv("GODEBUG"), simd.Emulated(), simd.VectorBitSize(), archsimd.X86.FMA(), archsimd.X86.AVX2(), archsimd.X86.AVX512())

// chosen is package simd's choice, if a user has asked it for one. Of itself it takes half the width, or a quarter, where a
// CPU cannot multiply polynomials (VPCLMULQDQ), as all of Intel's before Ice Lake: no kernel does.
func chosen(godebug string, emulated bool, bits int, fma, avx2, avx512 bool) int {
	asked := false
	for setting := range strings.SplitSeq(godebug, ",") {
		asked = asked || strings.HasPrefix(setting, "simd=")
	}
	switch {
	case !fma || asked && emulated:
		return 0
	case asked:
		return bits
	case avx512:
		return 512
	case avx2:
		return 256
	case emulated:
		return 0
	}
	return bits
}

// OfWidth is the kernel for the width of vectors that VectorBits tells.
func OfWidth[F any](lane, w128, w256, w512 F) F {
	switch vectorBits {
	case 128:
		return w128
	case 256:
		return w256
	case 512:
		return w512
	}
	return lane
}
