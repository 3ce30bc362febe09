//go:build goexperiment.simd

package reduce

import "github.com/goptim/goptim/goptim/internal/kernel"

// vectors is whether there are vectors of 256 bits.
var vectors = kernel.VectorBits() >= 256
