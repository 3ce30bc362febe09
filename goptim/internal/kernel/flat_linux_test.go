package kernel_test

import (
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"syscall"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"

	"github.com/goptim/goptim/goptim/internal/kernel"
)

func TestFlat(t *testing.T) { onCopies(t, testFlat[float32], testFlat[float64]) }

// testFlat runs every pass at every length, on vectors at the start or end of a page of memory. The vectors and the sums must be
// those of one element at a time, and nothing else may be written.
func testFlat[T kernel.Float](t *testing.T, k kernels) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	const guard = 12345
	random := rand.New(rand.NewPCG(1, 2))
	h := kernel.LBFGS{A: .7, B: -1.3}
	var pages [6][]T
	for k := range pages {
		page := fencedPage(t)
		pages[k] = unsafe.Slice((*T)(unsafe.Pointer(&page[0])), syscall.Getpagesize()/int(unsafe.Sizeof(T(0))))
	}
	pass := func(k kernels, name string) kernel.FlatFunc[T] {
		return k.named(name).(func(*kernel.LBFGS, *kernel.Columns[T], *kernel.Sums[T]))
	}
	for _, v := range flats {
		for n := range 3*kernel.SumLanes + 5 {
			for _, atEnd := range []bool{true, false} {
				var columns, want kernel.Columns[T]
				for k := range v.columns {
					for i := range pages[k] {
						pages[k][i] = guard
					}
					columns[k] = pages[k][:n]
					if atEnd {
						columns[k] = pages[k][len(pages[k])-n:]
					}
					for i := range columns[k] {
						columns[k][i] = T(random.NormFloat64())
					}
					want[k] = append([]T{}, columns[k]...)
				}
				sums := kernel.ApplyFlat(pass(k, v.name), h, columns, v.written, new(kernel.Scratch[T]))
				require.Equal(t, kernel.ApplyFlat(pass(single[T](), v.name), h, want, v.written, new(kernel.Scratch[T])), sums, "%s, %d elements", v.name, n)
				for k := range v.columns {
					require.Equal(t, want[k], columns[k], "%s, %d elements: column %d", v.name, n, k)
					beside := pages[k][n:]
					if atEnd {
						beside = pages[k][:len(pages[k])-n]
					}
					touched := slices.ContainsFunc(beside, func(x T) bool { return x != guard })
					require.False(t, touched, "%s, %d elements: something is written beside column %d", v.name, n, k)
				}
			}
		}
	}
}
