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
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
	lane32 "github.com/goptim/goptim/goptim/internal/kernel/lane/f32"
	lane64 "github.com/goptim/goptim/goptim/internal/kernel/lane/f64"
)

// A flat is a pass of L-BFGS, and the same one element at a time. Of its columns the first few are written.
type flat[T kernel.Float] struct {
	name             string
	columns, written int
	pass, single     kernel.FlatFunc[T]
}

func TestFlat(t *testing.T) {
	t.Run("float32", func(t *testing.T) {
		testFlat(t, []flat[float32]{
			{"first", 3, 2, f32.LBFGSFirst, lane32.LBFGSFirst},
			{"pair", 6, 4, f32.LBFGSPair, lane32.LBFGSPair},
			{"dot", 2, 0, f32.LBFGSDot, lane32.LBFGSDot},
			{"axpy", 3, 1, f32.LBFGSAxpy, lane32.LBFGSAxpy},
			{"turn", 2, 1, f32.LBFGSTurn, lane32.LBFGSTurn},
			{"scale", 2, 1, f32.LBFGSScale, lane32.LBFGSScale},
			{"move", 3, 1, f32.LBFGSMove, lane32.LBFGSMove},
		})
	})
	t.Run("float64", func(t *testing.T) {
		testFlat(t, []flat[float64]{
			{"first", 3, 2, f64.LBFGSFirst, lane64.LBFGSFirst},
			{"pair", 6, 4, f64.LBFGSPair, lane64.LBFGSPair},
			{"dot", 2, 0, f64.LBFGSDot, lane64.LBFGSDot},
			{"axpy", 3, 1, f64.LBFGSAxpy, lane64.LBFGSAxpy},
			{"turn", 2, 1, f64.LBFGSTurn, lane64.LBFGSTurn},
			{"scale", 2, 1, f64.LBFGSScale, lane64.LBFGSScale},
			{"move", 3, 1, f64.LBFGSMove, lane64.LBFGSMove},
		})
	})
}

// testFlat runs every pass at every length, on columns that begin or end where memory does: the columns and the sums are
// those of one element at a time, and nothing else is written.
func testFlat[T kernel.Float](t *testing.T, flats []flat[T]) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	const guard = 12345
	random := rand.New(rand.NewPCG(1, 2))
	h := kernel.LBFGS{A: .7, B: -1.3}
	var pages [6][]T
	for k := range pages {
		page := fencedPage(t)
		pages[k] = unsafe.Slice((*T)(unsafe.Pointer(&page[0])), syscall.Getpagesize()/int(unsafe.Sizeof(T(0))))
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
				sums := kernel.ApplyFlat(v.pass, h, columns, v.written, new(kernel.Scratch[T]))
				require.Equal(t, kernel.ApplyFlat(v.single, h, want, v.written, new(kernel.Scratch[T])), sums, "%s, %d elements", v.name, n)
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
