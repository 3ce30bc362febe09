package kernel_test

import (
	"runtime/debug"
	"syscall"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"

	"github.com/goptim/goptim/goptim/internal/kernel"
)

func TestPageEnds(t *testing.T) { onCopies(t, testPageEnds[float32], testPageEnds[float64]) }

// testPageEnds runs every kernel on buffers that end at the end of a mapped page, and on buffers that begin at the start of one.
// Any access outside them faults.
func testPageEnds[T kernel.Float](t *testing.T, k kernels) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	for _, v := range variants[T](k) {
		pages := make([][]byte, v.columns)
		for k := range pages {
			pages[k] = fencedPage(t)
		}
		for n := 1; n <= longest; n++ {
			for _, atEnd := range []bool{true, false} {
				columns := make([][]T, v.columns)
				for k, page := range pages {
					start := 0
					if atEnd {
						start = len(page) - bytes[T](n)
					}
					columns[k] = unsafe.Slice((*T)(unsafe.Pointer(&page[start])), n)
				}
				fill(columns)
				require.NotPanics(t, func() { v.update(columns) }, "%s, %d elements, at the end of a page: %v", v.name, n, atEnd)
			}
		}
	}
}

// fencedPage returns a page of memory between two inaccessible pages.
func fencedPage(t *testing.T) []byte {
	size := syscall.Getpagesize()
	memory, err := syscall.Mmap(-1, 0, 3*size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, syscall.Munmap(memory)) })
	require.NoError(t, syscall.Mprotect(memory[:size], syscall.PROT_NONE))
	require.NoError(t, syscall.Mprotect(memory[2*size:], syscall.PROT_NONE))
	return memory[size : 2*size]
}

func TestMixedPageEnds(t *testing.T) {
	onCopies(t, testMixedPageEnds, func(*testing.T, kernels) {})
}

// testMixedPageEnds is testPageEnds for buffers of several formats.
func testMixedPageEnds(t *testing.T, k kernels) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	var pages [7][]byte
	for k := range pages {
		pages[k] = fencedPage(t)
	}
	for _, v := range variants[float32](k) {
		for _, mix := range mixes {
			for n := 1; n <= longest && v.mixed != nil; n++ {
				for _, atEnd := range []bool{true, false} {
					operand := func(page []byte, format kernel.Format) kernel.Operand {
						size := 2
						if format == kernel.Float32 {
							size = 4
						}
						start := 0
						if atEnd {
							start = len(page) - size*n
						}
						return kernel.Operand{Address: unsafe.Pointer(&page[start]), Format: format}
					}
					var o kernel.Operands
					o.Param, o.Grad = operand(pages[0], mix[0]), operand(pages[1], mix[1])
					for k := range v.columns - 2 {
						o.State[k] = operand(pages[2+k], mix[2+k])
					}
					switch {
					case mix[0] == kernel.Float32:
						o.Copy = operand(pages[6], kernel.BFloat16)
					case n%2 == 0:
						o.Compensation = operand(pages[6], mix[0])
					default:
						o.First, o.Noise = n/3, kernel.NoiseOf(1, 1, 1)
					}
					require.NotPanics(t, func() { v.mixed(&o, n) }, "%s, %d elements, at the end of a page: %v", v.name, n, atEnd)
					if v.halves != nil && mix == mixes[0] {
						require.NotPanics(t, func() { v.halves(&o, n, new(int)) }, "%s, %d elements of bfloat16, at the end of a page: %v", v.name, n, atEnd)
					}
				}
			}
		}
	}
}
