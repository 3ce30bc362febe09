//go:build goexperiment.simd

package kernel

// productVectors reports whether it has multiplied n elements. It sets most to magnitudes of which the largest is that of all elements.
func productVectors(to, from *uint16, f Format, n int, x float32, most *[16]uint32) bool {
	switch {
	case bits == 0 || f == Float16 && !f16c:
		return false
	case f == BFloat16 && bits == 512:
		productBFloat16x16(to, from, n, x, most)
	case f == BFloat16:
		productBFloat16x8(to, from, n, x, most)
	case bits == 512:
		productFloat16x16(to, from, n, x, most)
	default:
		productFloat16x8(to, from, n, x, most)
	}
	return true
}

// lerpVectors reports whether it has computed n averages.
func lerpVectors(p, g *uint16, f Format, n int, w float32, ofG uint32) bool {
	switch {
	case bits == 0 || f == Float16 && !f16c:
		return false
	case f == BFloat16 && bits == 512:
		lerpBFloat16x16(p, g, n, w, ofG)
	case f == BFloat16:
		lerpBFloat16x8(p, g, n, w, ofG)
	case bits == 512:
		lerpFloat16x16(p, g, n, w, ofG)
	default:
		lerpFloat16x8(p, g, n, w, ofG)
	}
	return true
}

//go:noescape
func productBFloat16x16(to, from *uint16, n int, x float32, most *[16]uint32)

//go:noescape
func productBFloat16x8(to, from *uint16, n int, x float32, most *[16]uint32)

//go:noescape
func productFloat16x16(to, from *uint16, n int, x float32, most *[16]uint32)

//go:noescape
func productFloat16x8(to, from *uint16, n int, x float32, most *[16]uint32)

//go:noescape
func lerpBFloat16x16(to, from *uint16, n int, w float32, ofG uint32)

//go:noescape
func lerpBFloat16x8(to, from *uint16, n int, w float32, ofG uint32)

//go:noescape
func lerpFloat16x16(to, from *uint16, n int, w float32, ofG uint32)

//go:noescape
func lerpFloat16x8(to, from *uint16, n int, w float32, ofG uint32)
