//go:build goexperiment.simd

package kernel

import (
	"simd/archsimd"
	"sync"
	"unsafe"
)

// shuffled is the largest size of records that are moved by permutations of vectors.
const shuffled = 7

// A shuffle distributes the elements of size vectors to size others in turn, and collects them again. Each result is a chain of
// permutations, each of the partial result and one more input. Four chains are interleaved to hide their latency.
type shuffle struct {
	deal, collect [shuffled + 1][][4]archsimd.Uint32x16
}

var shuffles = sync.OnceValue(func() *shuffle {
	if bits != 512 {
		return nil
	}
	const w = 16
	s := new(shuffle)
	for size := 2; size <= shuffled; size++ {
		s.deal[size] = chains(size, func(to int) int { return to%w*size + to/w })
		s.collect[size] = chains(size, func(to int) int { return to%size*w + to/size })
	}
	return s
})

// chains returns the indices of the permutations, given the source of every element.
func chains(size int, from func(to int) int) [][4]archsimd.Uint32x16 {
	const w = 16
	var all [][4]archsimd.Uint32x16
	for first := 0; first < size; first += 4 {
		for k := 1; k < size; k++ {
			var indices [4]archsimd.Uint32x16
			for i := first; i < min(first+4, size); i++ {
				var index [w]uint32
				for lane := range index {
					index[lane] = uint32(lane) // elements that are already in place, or come later
					switch at := from(i*w + lane); {
					case at/w == k:
						index[lane] = uint32(w + at%w)
					case at/w == 0 && k == 1:
						index[lane] = uint32(at % w)
					}
				}
				indices[i-first] = archsimd.LoadUint32x16Array(&index)
			}
			all = append(all, indices)
		}
	}
	return all
}

// shuffleOf returns the shuffle for matrices of a shape; nil if moving single elements is as fast.
func shuffleOf[T Float](rows, cols int) *shuffle {
	if unsafe.Sizeof(T(0)) != 4 || rows > shuffled || cols > shuffled || rows*cols == 1 {
		return nil
	}
	return shuffles()
}

// across distributes the elements of matrices to their columns, and these to their rows.
func (s *shuffle) across(dst, src, middle unsafe.Pointer, rows, cols int) {
	switch {
	case cols == 1:
		permute(s.deal[rows], rows, 1, dst, 0, 1, src, 0, 1)
	case rows == 1:
		permute(s.deal[cols], cols, 1, dst, 0, 1, src, 0, 1)
	default:
		permute(s.deal[cols], cols, rows, middle, 1, rows, src, cols, 1)
		permute(s.deal[rows], rows, cols, dst, 1, cols, middle, rows, 1)
	}
}

// back is the reverse of across.
func (s *shuffle) back(dst, src, middle unsafe.Pointer, rows, cols int) {
	switch {
	case cols == 1:
		permute(s.collect[rows], rows, 1, dst, 0, 1, src, 0, 1)
	case rows == 1:
		permute(s.collect[cols], cols, 1, dst, 0, 1, src, 0, 1)
	default:
		permute(s.collect[rows], rows, cols, middle, rows, 1, src, 1, cols)
		permute(s.collect[cols], cols, rows, dst, cols, 1, middle, 1, rows)
	}
}

// permute computes size vectors from size others, n times. Distances are in vectors: dstStep and srcStep between consecutive
// vectors, dstNext and srcNext between the first ones of consecutive repetitions.
func permute(chains [][4]archsimd.Uint32x16, size, n int, dst unsafe.Pointer, dstNext, dstStep int, src unsafe.Pointer, srcNext, srcStep int) {
	if size == 3 { // most convolutions
		y0, y1, y2 := chains[0][0], chains[0][1], chains[0][2]
		z0, z1, z2 := chains[1][0], chains[1][1], chains[1][2]
		for range n {
			x, y, z := *vector(src, 0), *vector(src, srcStep), *vector(src, 2*srcStep)
			*vector(dst, 0) = x.ConcatPermute(y, y0).ConcatPermute(z, z0)
			*vector(dst, dstStep) = x.ConcatPermute(y, y1).ConcatPermute(z, z1)
			*vector(dst, 2*dstStep) = x.ConcatPermute(y, y2).ConcatPermute(z, z2)
			dst, src = unsafe.Pointer(vector(dst, dstNext)), unsafe.Pointer(vector(src, srcNext))
		}
		return
	}
	for range n {
		first, links := *vector(src, 0), chains
		for i := 0; i < size; i += 4 {
			x0, x1, x2, x3 := first, first, first, first
			for k := 1; k < size; k++ {
				y, index := *vector(src, k*srcStep), &links[k-1]
				x0, x1 = x0.ConcatPermute(y, index[0]), x1.ConcatPermute(y, index[1])
				x2, x3 = x2.ConcatPermute(y, index[2]), x3.ConcatPermute(y, index[3])
			}
			links = links[size-1:]
			for j := i; j < min(i+4, size); j++ {
				*vector(dst, j*dstStep) = x0
				x0, x1, x2 = x1, x2, x3
			}
		}
		dst, src = unsafe.Pointer(vector(dst, dstNext)), unsafe.Pointer(vector(src, srcNext))
	}
}

//go:nocheckptr
func vector(at unsafe.Pointer, i int) *archsimd.Float32x16 {
	return (*archsimd.Float32x16)(unsafe.Add(at, 64*i))
}
