package kernel_test

import (
	"math"
	"slices"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"

	"github.com/goptim/goptim/goptim/internal/kernel"
)

// mixes are the formats of a step's buffers: parameter, gradient, four states.
var mixes = [][6]kernel.Format{
	{kernel.BFloat16, kernel.BFloat16, kernel.BFloat16, kernel.BFloat16, kernel.BFloat16, kernel.BFloat16},
	{kernel.Float16, kernel.Float16, kernel.Float16, kernel.Float16, kernel.Float16, kernel.Float16},
	{kernel.BFloat16, kernel.BFloat16, kernel.Float32, kernel.Float32, kernel.Float32, kernel.Float32},
	{kernel.Float32, kernel.BFloat16, kernel.BFloat16, kernel.Float32, kernel.Float16, kernel.Float16},
	{kernel.Float32, kernel.Float32, kernel.Float32, kernel.Float32, kernel.Float32, kernel.Float32},
}

// stored is a buffer of a format between guards.
type stored struct {
	format kernel.Format
	halves []uint16 // n elements of 16 or 32 bits
	whole  []uint16
}

const guard = 0x3039

// store returns numbers, rounded to the format, between guards.
func store(format kernel.Format, numbers []float32, around int) *stored {
	size := 1
	if format == kernel.Float32 {
		size = 2
		around = around &^ 1
	}
	s := &stored{format: format, whole: make([]uint16, 2*around+size*len(numbers))}
	for i := range s.whole {
		s.whole[i] = guard
	}
	s.halves = s.whole[around:][:size*len(numbers)]
	s.set(numbers)
	return s
}

func (s *stored) operand() kernel.Operand {
	return kernel.Operand{Address: unsafe.Pointer(unsafe.SliceData(s.halves)), Format: s.format}
}

func (s *stored) set(numbers []float32) {
	for i, x := range numbers {
		switch s.format {
		case kernel.BFloat16:
			s.halves[i] = kernel.NarrowBFloat16(x)
		case kernel.Float16:
			s.halves[i] = kernel.NarrowFloat16(x)
		default:
			b := math.Float32bits(x)
			s.halves[2*i], s.halves[2*i+1] = uint16(b), uint16(b>>16)
		}
	}
}

// setAt sets an element of 16 bits.
func setAt(s *stored, i int, x float32) {
	if s.halves[i] = kernel.NarrowBFloat16(x); s.format == kernel.Float16 {
		s.halves[i] = kernel.NarrowFloat16(x)
	}
}

func (s *stored) get() []float32 {
	numbers := make([]float32, 0, len(s.halves))
	for i := 0; i < len(s.halves); i++ {
		switch s.format {
		case kernel.BFloat16:
			numbers = append(numbers, kernel.WidenBFloat16(s.halves[i]))
		case kernel.Float16:
			numbers = append(numbers, kernel.WidenFloat16(s.halves[i]))
		default:
			numbers = append(numbers, math.Float32frombits(uint32(s.halves[i])|uint32(s.halves[i+1])<<16))
			i++
		}
	}
	return numbers
}

func operandsOf(c []*stored) (o kernel.Operands) {
	o.Param, o.Grad = c[0].operand(), c[1].operand()
	for k, s := range c[2:] {
		o.State[k] = s.operand()
	}
	return o
}

func TestApplyMixed(t *testing.T) {
	onCopies(t, testApplyMixed, func(*testing.T, kernels) {})
}

// testApplyMixed compares every elementwise kernel on buffers of several formats with the kernel on float32 copies, whose
// results are rounded afterwards. It must write nothing outside the buffers.
func testApplyMixed(t *testing.T, k kernels) {
	lengths := []int{1100, 2100}
	for n := range longest + 1 {
		lengths = append(lengths, n)
	}
	for _, v := range variants[float32](k) {
		if v.mixed == nil {
			continue
		}
		for i, mix := range mixes {
			for _, n := range lengths {
				expected, ours := make([][]float32, v.columns), make([]*stored, v.columns)
				for k := range ours {
					expected[k] = make([]float32, n)
				}
				fill(expected)
				for k := range ours {
					ours[k] = store(mix[k], expected[k], 17+k)
					expected[k] = ours[k].get()
				}
				copied := store(mixes[i][1], expected[0], 19)
				o := operandsOf(ours)
				if mix[0] == kernel.Float32 && mix[1] != kernel.Float32 {
					o.Copy = copied.operand()
					for i := 3; i < n; i += 97 { // something else has written elements of the copy
						expected[0][i] = 0.5
						setAt(copied, i, 0.5)
					}
				}
				v.update(expected)
				v.mixed(&o, n)
				for k := range ours {
					if want := store(mix[k], expected[k], 17+k); !slices.Equal(want.whole, ours[k].whole) {
						require.Equal(t, want.whole, ours[k].whole, "%s, formats %v, %d elements: buffer %d", v.name, mix, n, k)
					}
				}
				if o.Copy.Address != nil {
					require.Equal(t, store(copied.format, expected[0], 19).whole, copied.whole, "%s, formats %v, %d elements: copy", v.name, mix, n)
				}
			}
		}
	}
}

// TestApplyMixedRounds compares a step whose parameter is rounded with random numbers, or has a compensation, with its formula, for
// parts of a tensor of every length. It must write nothing outside the buffers.
func TestApplyMixedRounds(t *testing.T) {
	onCopies(t, testApplyMixedRounds, func(*testing.T, kernels) {})
}

func testApplyMixedRounds(t *testing.T, k kernels) {
	lengths := []int{1100, 2100}
	for n := range 3*32 + 1 {
		lengths = append(lengths, n)
	}
	noise := kernel.NoiseOf(7, 3, 2)
	for _, v := range variants[float32](k) {
		if v.mixed == nil {
			continue
		}
		for i, format := range []kernel.Format{kernel.BFloat16, kernel.Float16} {
			for at, n := range lengths {
				first := []int{0, 5, 64, 31, 1<<33 - 32}[at%5]
				expected, ours := make([][]float32, v.columns), make([]*stored, v.columns)
				for k := range ours {
					expected[k] = make([]float32, n)
				}
				fill(expected)
				for k := range ours {
					ours[k] = store(format, expected[k], 17+k)
					expected[k] = ours[k].get()
				}
				o := operandsOf(ours)
				o.First = first
				rest := store(format, make([]float32, n), 5)
				for i := range n {
					setAt(rest, i, expected[0][i]/(300+float32(i%7)))
				}
				kahan := i == at%2
				if kahan {
					o.Compensation = rest.operand()
					for i, c := range rest.get() {
						expected[0][i] += c
					}
				} else {
					o.Noise = noise
				}
				v.update(expected)
				v.mixed(&o, n)
				want := store(format, expected[0], 17)
				for i, x := range expected[0] {
					switch {
					case !kahan && format == kernel.BFloat16:
						want.halves[i] = kernel.StochasticBFloat16(x, noise.At(first+i))
					case !kahan:
						want.halves[i] = kernel.StochasticFloat16(x, noise.At(first+i))
					}
				}
				require.Equal(t, want.whole, ours[0].whole, "%s, format %v, %d elements from %d", v.name, format, n, first)
				for k := 1; k < len(ours); k++ {
					require.Equal(t, store(format, expected[k], 17+k).whole, ours[k].whole, "%s: buffer %d", v.name, k)
				}
				if kahan {
					after := want.get()
					for i, x := range expected[0] {
						after[i] = x - after[i]
						if math.IsNaN(float64(after[i])) || math.IsInf(float64(after[i]), 0) {
							after[i] = 0
						}
					}
					require.Equal(t, store(format, after, 5).whole, rest.whole, "%s, %d elements: compensation", v.name, n)
				}
			}
		}
	}
}
