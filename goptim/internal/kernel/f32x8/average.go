//go:build goexperiment.simd && amd64

package f32x8

import "github.com/goptim/goptim/goptim/internal/kernel"

// The kernels of averages write the average p and read the parameter g.

// AverageLerp is p.lerp_(g, weight).
func AverageLerp(h *kernel.Average, p, g []float32, s [4][]float32) {
	w := weight{set(h.Weight.W), flag(h.Weight.FromX)}
	for i := 0; i < len(p); i += lanes {
		*at(p, i) = lerp(*at(p, i), *at(g, i), w)
	}
}

// AverageMulAdd is keep*p + c*g.
func AverageMulAdd(h *kernel.Average, p, g []float32, s [4][]float32) {
	keep, c := set(h.Keep), set(h.C)
	for i := 0; i < len(p); i += lanes {
		*at(p, i) = at(p, i).Mul(keep).Add(at(g, i).Mul(c))
	}
}

// AveragePolyak is p.mul_(keep).add_(g, alpha=c).
func AveragePolyak(h *kernel.Average, p, g []float32, s [4][]float32) {
	keep, c := set(h.Keep), set(h.C)
	for i := 0; i < len(p); i += lanes {
		*at(p, i) = axpy(at(p, i).Mul(keep), *at(g, i), c)
	}
}

// AverageSWA is p + (g - p)/n.
func AverageSWA(h *kernel.Average, p, g []float32, s [4][]float32) {
	n := set(h.N)
	for i := 0; i < len(p); i += lanes {
		x := *at(p, i)
		*at(p, i) = at(g, i).Sub(x).Div(n).Add(x)
	}
}

// The following kernels are the operations of averages of 16 bits, whose results are rounded one by one.

// AverageKeep is p.mul_(keep).
func AverageKeep(h *kernel.Average, p, g []float32, s [4][]float32) {
	keep := set(h.Keep)
	for i := 0; i < len(p); i += lanes {
		*at(p, i) = at(p, i).Mul(keep)
	}
}

// AverageProduct is g*c, in p.
func AverageProduct(h *kernel.Average, p, g []float32, s [4][]float32) {
	c := set(h.C)
	for i := 0; i < len(p); i += lanes {
		*at(p, i) = at(g, i).Mul(c)
	}
}

// AverageAdd is p.add_(g).
func AverageAdd(h *kernel.Average, p, g []float32, s [4][]float32) {
	for i := 0; i < len(p); i += lanes {
		*at(p, i) = at(p, i).Add(*at(g, i))
	}
}

// AverageAddProduct is p.add_(g, alpha=c).
func AverageAddProduct(h *kernel.Average, p, g []float32, s [4][]float32) {
	c := set(h.C)
	for i := 0; i < len(p); i += lanes {
		*at(p, i) = axpy(*at(p, i), *at(g, i), c)
	}
}

// AverageSubtract is p.sub_(g).
func AverageSubtract(h *kernel.Average, p, g []float32, s [4][]float32) {
	for i := 0; i < len(p); i += lanes {
		*at(p, i) = at(p, i).Sub(*at(g, i))
	}
}

// AverageDivide is p.div_(n).
func AverageDivide(h *kernel.Average, p, g []float32, s [4][]float32) {
	n := set(h.N)
	for i := 0; i < len(p); i += lanes {
		*at(p, i) = at(p, i).Div(n)
	}
}

// Copy copies g to p.
func Copy(h *kernel.None, p, g []float32, s [4][]float32) {
	for i := 0; i < len(p); i += lanes {
		*at(p, i) = *at(g, i)
	}
}
