//go:build goexperiment.simd

package reduce

import "github.com/goptim/goptim/goptim/internal/kernel"

// vectors is whether the CPU has vectors of 256 bits.
var vectors = kernel.VectorBits() >= 256
