// Package heap allocates what is large only if there is room. Go's runtime ends the process where it does not get
// memory, whatever a caller could do without.
package heap

import (
	"fmt"
	"unsafe"
)

// An Error is a number of bytes that there was no room for.
type Error int

func (e Error) Error() string { return fmt.Sprintf("cannot allocate %d bytes of memory", int(e)) }

// large is from how many bytes on room is asked for. Less usually fits in what Go's heap has reserved.
const large = 4 << 20

// Grow is n elements, of s's memory if that is enough; their values are not defined.
func Grow[T any](s []T, n int) ([]T, error) {
	if n <= cap(s) {
		return s[:n], nil
	}
	if size := n * int(unsafe.Sizeof(*new(T))); size >= large && !room(size) {
		return nil, Error(size)
	}
	return make([]T, n), nil
}

// Grown makes s n elements, and panics with an Error if there is no room.
func Grown[T any](s *[]T, n int) []T {
	grown, err := Grow(*s, n)
	if err != nil {
		panic(err)
	}
	*s = grown
	return grown
}
