package kernel

import "unsafe"

// A Transpose lays as many matrices as a vector has lanes side by side: the first elements of all, then the second, a
// vector apart.
type Transpose[T Float] struct {
	rows, cols int
	middle     []T
	shuffle    *shuffle
}

// TransposeOf is that for matrices of rows x cols. It needs memory in the middle, for as many elements.
func TransposeOf[T Float](rows, cols int, middle []T) Transpose[T] {
	return Transpose[T]{rows, cols, middle[:rows*cols*Lanes[T]()], shuffleOf[T](rows, cols)}
}

// Across lays n matrices side by side. Where there are less than lanes, the last one fills the rest.
func (t *Transpose[T]) Across(dst, src []T, n int) {
	w, size := Lanes[T](), t.rows*t.cols
	dst, src = dst[:size*w], src[:size*n]
	if n == w && t.shuffle != nil {
		t.shuffle.across(first(dst), first(src), first(t.middle), t.rows, t.cols)
		return
	}
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
	dst, src = dst[:size*n], src[:size*w]
	if n == w && t.shuffle != nil {
		t.shuffle.back(first(dst), first(src), first(t.middle), t.rows, t.cols)
		return
	}
	for j := range size {
		at := j
		for _, x := range src[j*w:][:n] {
			dst[at] = x
			at += size
		}
	}
}

func first[T any](s []T) unsafe.Pointer { return unsafe.Pointer(unsafe.SliceData(s)) }
