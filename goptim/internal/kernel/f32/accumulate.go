//go:build goexperiment.simd

package f32

import (
	"simd"

	"github.com/goptim/goptim/goptim/internal/kernel"
	lane "github.com/goptim/goptim/goptim/internal/kernel/lane/f32"
)

// Accumulate adds g to p.
func Accumulate(h *kernel.None, p, g []float32, s [3][]float32) {
	if simd.Emulated() {
		lane.Accumulate(h, p, g, s)
		return
	}
	w := lanes(*at(p, 0))
	for i := 0; i < len(p); i += w {
		*at(p, i) = at(p, i).Add(*at(g, i))
	}
}

func lanes(x simd.Float32s) int { return x.Len() }
