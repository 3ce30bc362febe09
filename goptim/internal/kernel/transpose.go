package kernel

import "unsafe"

// A Transpose interleaves as many matrices as a vector has lanes: a vector of their first elements, then of the second, and so
// on. The next matrices follow.
type Transpose[T Float] struct {
	rows, cols int
	middle     []T
	shuffle    *shuffle
}

// TransposeOf returns the Transpose for matrices of rows x cols. It needs scratch memory for as many elements.
func TransposeOf[T Float](rows, cols int, middle []T) Transpose[T] {
	return Transpose[T]{rows, cols, middle[:rows*cols*Lanes[T]()], shuffleOf[T](rows, cols)}
}

// Across interleaves n matrices. If the last group is incomplete, the last matrix fills it.
func (t *Transpose[T]) Across(dst, src []T, n int) {
	w, size := Lanes[T](), t.rows*t.cols
	dst, src = dst[:(n+w-1)/w*w*size], src[:n*size]
	m := 0
	switch {
	case size == 1 || w == 1: // they already are
		m = copy(dst, src) / size
	case t.shuffle != nil:
		for ; m+w <= n; m += w {
			t.shuffle.across(first(dst[m*size:]), first(src[m*size:]), first(t.middle), t.rows, t.cols)
		}
	default:
		m = tilesAcross[T](first(dst), first(src), size, n)
	}
	for ; m < n; m += w {
		across(dst[m*size:][:w*size], src[m*size:min(m+w, n)*size], size)
	}
	if size == 1 {
		for i := n; i < len(dst); i++ {
			dst[i] = src[n-1]
		}
	}
}

// across interleaves at most as many matrices as there are lanes.
func across[T Float](dst, src []T, size int) {
	n, w := len(src)/size, len(dst)/size
	for j := range size {
		to, at := dst[j*w:][:w], j
		for m := range to[:n] {
			to[m] = src[at]
			at += size
		}
		for m := n; m < w; m++ {
			to[m] = to[n-1]
		}
	}
}

// Back is the reverse of Across.
func (t *Transpose[T]) Back(dst, src []T, n int) {
	w, size := Lanes[T](), t.rows*t.cols
	dst, src = dst[:n*size], src[:(n+w-1)/w*w*size]
	m := 0
	switch {
	case size == 1 || w == 1:
		m = copy(dst, src) / size
	case t.shuffle != nil:
		for ; m+w <= n; m += w {
			t.shuffle.back(first(dst[m*size:]), first(src[m*size:]), first(t.middle), t.rows, t.cols)
		}
	default:
		m = tilesBack[T](first(dst), first(src), size, n)
	}
	for ; m < n; m += w {
		back(dst[m*size:min(m+w, n)*size], src[m*size:][:w*size], size)
	}
}

// back is the reverse of across.
func back[T Float](dst, src []T, size int) {
	n, w := len(dst)/size, len(src)/size
	for j := range size {
		at := j
		for _, x := range src[j*w:][:n] {
			dst[at] = x
			at += size
		}
	}
}

func first[T any](s []T) unsafe.Pointer { return unsafe.Pointer(unsafe.SliceData(s)) }
