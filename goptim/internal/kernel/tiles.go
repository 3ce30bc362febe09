//go:build goexperiment.simd && (amd64 || arm64)

package kernel

import (
	"simd/archsimd"
	"unsafe"
)

// Tiles of 128 bits by as many are transposed in registers: four elements of four matrices, or two of two for float64. For
// wider vectors there are more of them, rather than wider ones, whose halves would have to change places.

// tilesAcross lays matrices side by side, as Transpose does, as long as they fill vectors, and returns how many.
func tilesAcross[T Float](dst, src unsafe.Pointer, size, n int) int {
	w, bytes := Lanes[T](), int(unsafe.Sizeof(T(0)))
	side := 16 / bytes
	n = tiled(size, side, w, n)
	for range n / w {
		for lane := 0; lane < w; lane += side {
			if to := unsafe.Add(dst, lane*bytes); bytes == 4 {
				foursAcross(to, src, size, w)
			} else {
				twosAcross(to, src, size, w)
			}
			src = unsafe.Add(src, side*size*bytes)
		}
		dst = unsafe.Add(dst, w*size*bytes)
	}
	return n
}

// tilesBack is the reverse of tilesAcross.
func tilesBack[T Float](dst, src unsafe.Pointer, size, n int) int {
	w, bytes := Lanes[T](), int(unsafe.Sizeof(T(0)))
	side := 16 / bytes
	n = tiled(size, side, w, n)
	for range n / w {
		for lane := 0; lane < w; lane += side {
			if from := unsafe.Add(src, lane*bytes); bytes == 4 {
				foursBack(dst, from, size, w)
			} else {
				twosBack(dst, from, size, w)
			}
			dst = unsafe.Add(dst, side*size*bytes)
		}
		src = unsafe.Add(src, w*size*bytes)
	}
	return n
}

// tiled is how many of n matrices tiles take. A tile that is wider than they are reads and writes some of the next one,
// which comes after it and so is what it should be in the end; but there must be one.
func tiled(size, side, w, n int) int {
	if size < side {
		n--
	}
	return n - n%w
}

// foursAcross lays four matrices side by side, in vectors of w elements.
func foursAcross(dst, src unsafe.Pointer, size, w int) {
	for i := 0; i < size; i += 4 {
		at := max(0, min(i, size-4)) // the last tile takes elements of the one before it once more
		a, b, c, d := transpose4(*four(src, at), *four(src, at+size), *four(src, at+2*size), *four(src, at+3*size))
		*four(dst, at*w), *four(dst, (at+1)*w), *four(dst, (at+2)*w), *four(dst, (at+3)*w) = a, b, c, d
	}
}

func foursBack(dst, src unsafe.Pointer, size, w int) {
	for i := 0; i < size; i += 4 {
		at := max(0, min(i, size-4))
		a, b, c, d := transpose4(*four(src, at*w), *four(src, (at+1)*w), *four(src, (at+2)*w), *four(src, (at+3)*w))
		*four(dst, at) = a // in this order, where one writes some of the next
		*four(dst, at+size) = b
		*four(dst, at+2*size) = c
		*four(dst, at+3*size) = d
	}
}

func transpose4(a, b, c, d archsimd.Uint32x4) (_, _, _, _ archsimd.Uint32x4) {
	ab, cd := a.InterleaveLo(b).ReshapeToUint64s(), c.InterleaveLo(d).ReshapeToUint64s()
	abHi, cdHi := a.InterleaveHi(b).ReshapeToUint64s(), c.InterleaveHi(d).ReshapeToUint64s()
	return ab.InterleaveLo(cd).ReshapeToUint32s(), ab.InterleaveHi(cd).ReshapeToUint32s(),
		abHi.InterleaveLo(cdHi).ReshapeToUint32s(), abHi.InterleaveHi(cdHi).ReshapeToUint32s()
}

// twosAcross lays two matrices side by side, in vectors of w elements.
func twosAcross(dst, src unsafe.Pointer, size, w int) {
	for i := 0; i < size; i += 2 {
		at := min(i, size-2)
		a, b := *two(src, at), *two(src, at+size)
		*two(dst, at*w), *two(dst, (at+1)*w) = a.InterleaveLo(b), a.InterleaveHi(b)
	}
}

func twosBack(dst, src unsafe.Pointer, size, w int) {
	for i := 0; i < size; i += 2 {
		at := min(i, size-2)
		a, b := *two(src, at*w), *two(src, (at+1)*w)
		*two(dst, at), *two(dst, at+size) = a.InterleaveLo(b), a.InterleaveHi(b)
	}
}

//go:nocheckptr
func four(at unsafe.Pointer, i int) *archsimd.Uint32x4 {
	return (*archsimd.Uint32x4)(unsafe.Add(at, 4*i))
}

//go:nocheckptr
func two(at unsafe.Pointer, i int) *archsimd.Uint64x2 {
	return (*archsimd.Uint64x2)(unsafe.Add(at, 8*i))
}
