//go:build goexperiment.simd

package kernel

// f16c is whether the CPU converts float16. All known CPUs with AVX2 do.
var f16c = hasF16C()

func widenVectors(to []float32, from *uint16, f Format, ahead int) bool {
	switch {
	case bits == 0 || f == Float16 && !f16c:
		return false
	case f == BFloat16 && bits == 512:
		widenBFloat16x16(&to[0], from, len(to), ahead)
	case f == BFloat16:
		widenBFloat16x8(&to[0], from, len(to), ahead)
	case bits == 512:
		widenFloat16x16(&to[0], from, len(to), ahead)
	default:
		widenFloat16x8(&to[0], from, len(to), ahead)
	}
	return true
}

func narrowVectors(to *uint16, from []float32, f Format) bool {
	switch {
	case bits == 0 || f == Float16 && !f16c:
		return false
	case f == BFloat16 && bits == 512:
		narrowBFloat16x16(to, &from[0], len(from))
	case f == BFloat16:
		narrowBFloat16x8(to, &from[0], len(from))
	case bits == 512:
		narrowFloat16x16(to, &from[0], len(from))
	default:
		narrowFloat16x8(to, &from[0], len(from))
	}
	return true
}

func narrowVectorsWith(z *Noise, to *uint16, from []float32, f Format, first int) bool {
	x := z.first(first)
	switch {
	case bits == 0:
		return false
	case f == BFloat16 && bits == 512:
		stochasticBFloat16x16(to, &from[0], len(from), x, z.stride)
	case f == BFloat16:
		stochasticBFloat16x8(to, &from[0], len(from), x, z.stride)
	case bits == 512:
		stochasticFloat16x16(to, &from[0], len(from), x, z.stride)
	default:
		stochasticFloat16x8(to, &from[0], len(from), x, z.stride)
	}
	return true
}

func addVectors(to, from []float32) bool {
	if bits == 0 {
		return false
	}
	addx8(&to[0], &from[0], len(to))
	return true
}

func subtractVectors(to, from []float32) bool {
	if bits == 0 {
		return false
	}
	subtractx8(&to[0], &from[0], len(to))
	return true
}

//go:noescape
func widenBFloat16x16(to *float32, from *uint16, n, ahead int)

//go:noescape
func widenBFloat16x8(to *float32, from *uint16, n, ahead int)

//go:noescape
func widenFloat16x16(to *float32, from *uint16, n, ahead int)

//go:noescape
func widenFloat16x8(to *float32, from *uint16, n, ahead int)

//go:noescape
func narrowBFloat16x16(to *uint16, from *float32, n int)

//go:noescape
func narrowBFloat16x8(to *uint16, from *float32, n int)

//go:noescape
func narrowFloat16x16(to *uint16, from *float32, n int)

//go:noescape
func narrowFloat16x8(to *uint16, from *float32, n int)

//go:noescape
func stochasticBFloat16x16(to *uint16, from *float32, n int, x, stride uint32)

//go:noescape
func stochasticBFloat16x8(to *uint16, from *float32, n int, x, stride uint32)

//go:noescape
func stochasticFloat16x16(to *uint16, from *float32, n int, x, stride uint32)

//go:noescape
func stochasticFloat16x8(to *uint16, from *float32, n int, x, stride uint32)

//go:noescape
func addx8(to, from *float32, n int)

//go:noescape
func subtractx8(to, from *float32, n int)

func hasF16C() bool
