//go:build goexperiment.simd

package kernel

func widenVectors(to []float32, from *uint16, f Format, ahead int) bool {
	switch {
	case bits == 0:
		return false
	case f == BFloat16:
		widenBFloat16(&to[0], from, len(to), ahead)
	default:
		widenFloat16(&to[0], from, len(to), ahead)
	}
	return true
}

func narrowVectors(to *uint16, from []float32, f Format) bool {
	switch {
	case bits == 0:
		return false
	case f == BFloat16:
		narrowBFloat16(to, &from[0], len(from))
	default:
		narrowFloat16(to, &from[0], len(from))
	}
	return true
}

// narrowVectorsWith does not have vectors for float16.
func narrowVectorsWith(z *Noise, to *uint16, from []float32, f Format, first int) bool {
	if bits == 0 || f == Float16 {
		return false
	}
	stochasticBFloat16(to, &from[0], len(from), z.first(first), z.stride)
	return true
}

func addVectors(to, from []float32) bool {
	if bits == 0 {
		return false
	}
	addx4(&to[0], &from[0], len(to))
	return true
}

func subtractVectors(to, from []float32) bool {
	if bits == 0 {
		return false
	}
	subtractx4(&to[0], &from[0], len(to))
	return true
}

//go:noescape
func widenBFloat16(to *float32, from *uint16, n, ahead int)

//go:noescape
func widenFloat16(to *float32, from *uint16, n, ahead int)

//go:noescape
func narrowBFloat16(to *uint16, from *float32, n int)

//go:noescape
func narrowFloat16(to *uint16, from *float32, n int)

//go:noescape
func stochasticBFloat16(to *uint16, from *float32, n int, x, stride uint32)

//go:noescape
func addx4(to, from *float32, n int)

//go:noescape
func subtractx4(to, from *float32, n int)
