// Package heap makes large allocations only if the system has enough memory. Go's runtime terminates the process if an
// allocation fails, even if the caller could continue without the memory.
package heap

import (
	"fmt"
	"unsafe"
)

// An Error is the number of bytes that could not be allocated.
type Error int

func (e Error) Error() string { return fmt.Sprintf("cannot allocate %d bytes of memory", int(e)) }

// large is the size in bytes from which Grow checks for available memory. Less usually fits in what Go's heap has
// reserved.
const large = 4 << 20

// Grow returns n elements with undefined values. It reuses the memory of s if it is large enough.
func Grow[T any](s []T, n int) ([]T, error) {
	if n <= cap(s) {
		return s[:n], nil
	}
	if size := n * int(unsafe.Sizeof(*new(T))); size >= large && !room(size) {
		return nil, Error(size)
	}
	return make([]T, n), nil
}

// Grown resizes s to n elements. It panics with an Error if there is not enough memory.
func Grown[T any](s *[]T, n int) []T {
	grown, err := Grow(*s, n)
	if err != nil {
		panic(err)
	}
	*s = grown
	return grown
}
