//go:build goexperiment.simd

package kernel

import (
	"simd/archsimd"
	"unsafe"
)

// Matrices are transposed in registers, in tiles of 128 bits: four elements of four matrices, or two of two in float64. A wider
// vector has several tiles. Tiles of 256 bits, whose halves must be combined, would save 5% of the time.

// tilesAcross interleaves matrices like Transpose, as long as they fill vectors, and returns their number.
func tilesAcross[T Float](dst, src unsafe.Pointer, size, n int) int {
	w, bytes, tile := Lanes[T](), int(unsafe.Sizeof(T(0))), tileOf[T](size)
	for range n / w {
		for lane := 0; lane < w; lane += tile.matrices {
			tile.across(unsafe.Add(dst, lane*bytes), src, size, w)
			src = unsafe.Add(src, tile.matrices*size*bytes)
		}
		dst = unsafe.Add(dst, w*size*bytes)
	}
	return n - n%w
}

// tilesBack is the reverse of tilesAcross.
func tilesBack[T Float](dst, src unsafe.Pointer, size, n int) int {
	w, bytes, tile := Lanes[T](), int(unsafe.Sizeof(T(0))), tileOf[T](size)
	for range n / w {
		for lane := 0; lane < w; lane += tile.matrices {
			tile.back(dst, unsafe.Add(src, lane*bytes), size, w)
			dst = unsafe.Add(dst, tile.matrices*size*bytes)
		}
		src = unsafe.Add(src, w*size*bytes)
	}
	return n - n%w
}

// A tile interleaves matrices of a size in vectors of w elements, and reverses it.
type tile struct {
	matrices     int
	across, back func(dst, src unsafe.Pointer, size, w int)
}

func tileOf[T Float](size int) tile {
	switch {
	case unsafe.Sizeof(T(0)) == 8:
		return tile{2, twosAcross, twosBack}
	case size == 2:
		return tile{4, pairsAcross, pairsBack}
	case size == 3:
		return tile{4, triplesAcross, triplesBack}
	}
	return tile{4, foursAcross, foursBack}
}

// next returns the start of the tile after that at element i. The last tile may overlap the one before.
func next(i, side, size int) int { return max(i+1, min(i+side, size-side)) }

// foursAcross processes tiles of four elements of four matrices.
func foursAcross(dst, src unsafe.Pointer, size, w int) {
	size4, w4 := 4*size, 4*w
	for i := 0; i <= size-4; i = next(i, 4, size) {
		from, to := unsafe.Add(src, 4*i), unsafe.Add(dst, i*w4)
		a, b, c, d := transpose4(*four(from, 0), *four(from, size4), *four(from, 2*size4), *four(from, 3*size4))
		*four(to, 0), *four(to, w4), *four(to, 2*w4), *four(to, 3*w4) = a, b, c, d
	}
}

func foursBack(dst, src unsafe.Pointer, size, w int) {
	size4, w4 := 4*size, 4*w
	for i := 0; i <= size-4; i = next(i, 4, size) {
		from, to := unsafe.Add(src, i*w4), unsafe.Add(dst, 4*i)
		a, b, c, d := transpose4(*four(from, 0), *four(from, w4), *four(from, 2*w4), *four(from, 3*w4))
		*four(to, 0), *four(to, size4), *four(to, 2*size4), *four(to, 3*size4) = a, b, c, d
	}
}

func transpose4(a, b, c, d archsimd.Uint32x4) (_, _, _, _ archsimd.Uint32x4) {
	ab, cd := a.InterleaveLo(b).ReshapeToUint64s(), c.InterleaveLo(d).ReshapeToUint64s()
	abHi, cdHi := a.InterleaveHi(b).ReshapeToUint64s(), c.InterleaveHi(d).ReshapeToUint64s()
	return ab.InterleaveLo(cd).ReshapeToUint32s(), ab.InterleaveHi(cd).ReshapeToUint32s(),
		abHi.InterleaveLo(cdHi).ReshapeToUint32s(), abHi.InterleaveHi(cdHi).ReshapeToUint32s()
}

// triplesAcross processes four matrices of three elements, abca bcab cabc.
func triplesAcross(dst, src unsafe.Pointer, _, w int) {
	x, y, z := *four(src, 0), *four(src, 16), *four(src, 32)
	ab, bc := y.ConcatPermuteScalars(2, 3, 5, 6, z), x.ConcatPermuteScalars(1, 2, 4, 5, y) // aabb of y and z, bcbc of x and y
	*four(dst, 0) = x.ConcatPermuteScalars(0, 3, 4, 6, ab)
	*four(dst, 4*w) = bc.ConcatPermuteScalars(0, 2, 5, 7, ab)
	*four(dst, 8*w) = bc.ConcatPermuteScalars(1, 3, 4, 7, z)
}

func triplesBack(dst, src unsafe.Pointer, _, w int) {
	a, b, c := *four(src, 0), *four(src, 4*w), *four(src, 8*w)
	ab, bc, ca := a.ConcatPermuteScalars(0, 2, 4, 6, b), b.ConcatPermuteScalars(1, 3, 5, 7, c), c.ConcatPermuteScalars(0, 2, 5, 7, a)
	*four(dst, 0) = ab.ConcatPermuteScalars(0, 2, 4, 6, ca)
	*four(dst, 16) = bc.ConcatPermuteScalars(0, 2, 5, 7, ab)
	*four(dst, 32) = ca.ConcatPermuteScalars(1, 3, 5, 7, bc)
}

// pairsAcross processes four matrices of two elements.
func pairsAcross(dst, src unsafe.Pointer, _, w int) {
	x, y := *four(src, 0), *four(src, 16)
	*four(dst, 0), *four(dst, 4*w) = x.ConcatPermuteScalars(0, 2, 4, 6, y), x.ConcatPermuteScalars(1, 3, 5, 7, y)
}

func pairsBack(dst, src unsafe.Pointer, _, w int) {
	a, b := *four(src, 0), *four(src, 4*w)
	*four(dst, 0), *four(dst, 16) = a.InterleaveLo(b), a.InterleaveHi(b)
}

// twosAcross processes tiles of two float64 elements of two matrices.
func twosAcross(dst, src unsafe.Pointer, size, w int) {
	for i := 0; i <= size-2; i = next(i, 2, size) {
		a, b := *two(src, i), *two(src, i+size)
		*two(dst, i*w), *two(dst, (i+1)*w) = a.InterleaveLo(b), a.InterleaveHi(b)
	}
}

func twosBack(dst, src unsafe.Pointer, size, w int) {
	for i := 0; i <= size-2; i = next(i, 2, size) {
		a, b := *two(src, i*w), *two(src, (i+1)*w)
		*two(dst, i), *two(dst, i+size) = a.InterleaveLo(b), a.InterleaveHi(b)
	}
}

//go:nocheckptr
func four(at unsafe.Pointer, offset int) *archsimd.Uint32x4 {
	return (*archsimd.Uint32x4)(unsafe.Add(at, offset))
}

//go:nocheckptr
func two(at unsafe.Pointer, i int) *archsimd.Uint64x2 {
	return (*archsimd.Uint64x2)(unsafe.Add(at, 8*i))
}
