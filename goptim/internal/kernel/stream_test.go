package kernel_test

import (
	"math"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"

	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
)

// TestOfAllNumbers compares the operations that are bound by memory with ApplyMixed, for all numbers of 16 bits.
func TestOfAllNumbers(t *testing.T) {
	const all = 1 << 16
	for _, f := range []kernel.Format{kernel.BFloat16, kernel.Float16} {
		x, y := make([]uint16, all), make([]uint16, all)
		for i := range x {
			x[i], y[i] = uint16(i), uint16(i*40503+77)
		}
		operands := func(p, g []uint16) kernel.Operands {
			return kernel.Operands{
				Param: kernel.Operand{Address: unsafe.Pointer(&p[0]), Format: f}, Grad: kernel.Operand{Address: unsafe.Pointer(&g[0]), Format: f},
			}
		}
		for _, n := range []int{1, 31, 32, 33, all - 1, all} {
			for _, factor := range []float64{.37, 1. / 65536, 3} {
				h := kernel.Factor{X: factor}
				want, got := make([]uint16, n), make([]uint16, n)
				o := operands(want, x)
				kernel.ApplyMixed(f32.Product, &h, &o, n)
				most := kernel.MultiplyNarrow(f32.Product, &h, operands(got, x), n)
				requireNumbers(t, f, want, got)
				scanned := kernel.ScanNarrow(f32.Largest, &kernel.None{}, o.Grad, n)
				require.Equal(t, math.IsNaN(float64(scanned)), math.IsNaN(float64(most)))
				if n < 100 {
					require.Equal(t, scanned, most)
				}
			}
			for _, weight := range []float64{.1, .9, -.7, 1} {
				h := kernel.Average{Weight: kernel.WeightOf[float32](weight)}
				want, got := append([]uint16{}, x[:n]...), append([]uint16{}, x[:n]...)
				o := operands(want, y)
				kernel.ApplyMixed(f32.AverageLerp, &h, &o, n)
				kernel.LerpNarrow(f32.AverageLerp, &h, operands(got, y), n)
				requireNumbers(t, f, want, got)
			}
		}
	}
}

// requireNumbers compares encodings, of which any NaN equals any other.
func requireNumbers(t *testing.T, f kernel.Format, want, got []uint16) {
	infinity := uint16(0x7f80)
	if f == kernel.Float16 {
		infinity = 0x7c00
	}
	for i := range want {
		if want[i] != got[i] && (want[i]&0x7fff <= infinity || got[i]&0x7fff <= infinity) {
			require.Equal(t, want[i], got[i], "element %d of %d", i, len(want))
		}
	}
}
