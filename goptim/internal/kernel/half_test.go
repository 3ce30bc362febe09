package kernel

import (
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"unsafe"

	"github.com/goptim/goptim/goptim/internal/fpstate"
)

// A definition of a 16-bit type, from which the expected conversions follow.
type definition struct {
	format   Format
	mantissa int
	bias     int
	widen    func(x uint16) float32
	narrow   func(x float32) uint16
}

var definitions = map[string]definition{
	"bfloat16": {BFloat16, 7, 127, WidenBFloat16, NarrowBFloat16},
	"float16":  {Float16, 10, 15, WidenFloat16, NarrowFloat16},
}

// value returns the value of x without its sign. The value of infinity is the power of two that follows the largest number.
func (d *definition) value(x uint16) float64 {
	magnitude := int(x & 0x7fff)
	exponent, fraction := magnitude>>d.mantissa, magnitude&(1<<d.mantissa-1)
	if exponent == 0 {
		exponent = 1
	} else {
		fraction |= 1 << d.mantissa
	}
	return math.Ldexp(float64(fraction), exponent-d.bias-d.mantissa)
}

func (d *definition) infinity() uint16 { return uint16(1<<(15-d.mantissa)-1) << d.mantissa }

// nearest returns the nearest number to x, which is not a NaN: the even one of two.
func (d *definition) nearest(x float32) uint16 {
	var sign uint16
	if math.Signbit(float64(x)) {
		sign = 0x8000
	}
	size, infinity := math.Abs(float64(x)), d.infinity()
	above := uint16(0) // the first that is not less
	for step := uint16(1 << 14); step > 0; step /= 2 {
		if above+step <= infinity && d.value(above+step-1) < size {
			above += step
		}
	}
	if above == 0 || size >= d.value(infinity) {
		return sign | min(above, infinity)
	}
	below := above - 1
	switch up, down := d.value(above)-size, size-d.value(below); {
	case down < up || down == up && below%2 == 0:
		return sign | below
	}
	return sign | above
}

// onWidths runs a test with the vectors of this process, with 256 bits, and without vectors.
func onWidths(t *testing.T, test func(t *testing.T)) {
	before := bits
	defer func() { bits = before }()
	for _, width := range slices.Compact([]int{before, min(before, 256), 0}) {
		bits = width
		test(t)
	}
}

// towardsZero rounds towards zero, and treats subnormal operands and results as zero.
var towardsZero = map[string]fpstate.State{"amd64": 0xe040, "arm64": 7 << 22}

// onStates calls compute and then check, with the usual floating-point state during compute and with one that rounds towards zero and
// treats subnormal numbers as zero. Compute must not change it.
func onStates(compute, check func()) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for _, state := range []fpstate.State{0, towardsZero[runtime.GOARCH]} {
		usual := fpstate.Get()
		fpstate.Set(usual | state)
		compute()
		after := fpstate.Get()
		fpstate.Set(usual)
		const exceptions = 0x3f // that have occurred, on amd64
		if (after^usual^state)&^exceptions != 0 {
			panic(fmt.Sprintf("the floating-point state %#x has become %#x", usual|state, after))
		}
		check()
	}
}

func TestWiden(t *testing.T) {
	for name, d := range definitions {
		all := make([]uint16, 1<<16)
		for i := range all {
			all[i] = uint16(i)
		}
		onWidths(t, func(t *testing.T) {
			vectors, scalars := make([]float32, 1<<16), make([]float32, 1<<16)
			onStates(func() {
				clear(vectors)
				widen(vectors, unsafe.Pointer(&all[0]), d.format, 0)
				for i, x := range all {
					scalars[i] = d.widen(x)
				}
			}, func() {
				for i, x := range all {
					if math.Float32bits(scalars[i]) != math.Float32bits(vectors[i]) {
						t.Fatalf("%s %#x is %v, in vectors %v", name, x, scalars[i], vectors[i])
					}
					got, magnitude := scalars[i], x&0x7fff
					want := float32(d.value(x))
					if magnitude == d.infinity() {
						want = float32(math.Inf(1))
					}
					if x>>15 != 0 {
						want = -want
					}
					if same := math.Float32bits(got) == math.Float32bits(want); magnitude <= d.infinity() && !same || magnitude > d.infinity() && got == got {
						t.Fatalf("%s %#x is %v", name, x, got)
					}
				}
			})
		})
	}
}

// TestNarrow rounds all numbers of 16 bits and all ties between them, their neighbors, and random bits.
func TestNarrow(t *testing.T) {
	for name, d := range definitions {
		numbers := []float32{math.Float32frombits(0x7f800001), math.Float32frombits(0x7fffffff), math.Float32frombits(0xff807fff), 1, math.MaxFloat32}
		for x := range d.infinity() + 1 {
			for _, y := range []float64{d.value(x), (d.value(x) + d.value(x+1)) / 2} {
				if x == d.infinity() {
					y = math.Inf(1)
				}
				b := math.Float32bits(float32(y))
				for _, b := range []uint32{b - 1, b, b + 1} {
					numbers = append(numbers, math.Float32frombits(b), math.Float32frombits(b^1<<31))
				}
			}
		}
		r := rand.New(rand.NewPCG(5, 6))
		for len(numbers) < 1<<19 || len(numbers)%group != 0 {
			numbers = append(numbers, math.Float32frombits(r.Uint32()))
		}
		want := make([]uint16, len(numbers))
		for i, x := range numbers {
			if want[i] = d.infinity() | 1; x == x {
				want[i] = d.nearest(x)
			}
		}
		onWidths(t, func(t *testing.T) {
			vectors, scalars := make([]uint16, len(numbers)), make([]uint16, len(numbers))
			onStates(func() {
				clear(vectors)
				narrow(unsafe.Pointer(&vectors[0]), numbers, d.format)
				for i, x := range numbers {
					scalars[i] = d.narrow(x)
				}
			}, func() {
				for i, x := range numbers {
					got := scalars[i]
					if got != vectors[i] {
						t.Fatalf("%s: %v (%#x) becomes %#x, in vectors %#x", name, x, math.Float32bits(x), got, vectors[i])
					}
					if b := math.Float32bits(x); b&0x7fffffff > 0x7f800000 {
						quiet := uint16(1) << (d.mantissa - 1)
						if got&0x7fff <= d.infinity() || got&quiet == 0 || got>>15 != uint16(b>>31) {
							t.Fatalf("%s: %#x becomes %#x", name, b, got)
						}
					} else if got != want[i] {
						t.Fatalf("%s: %v (%#x) becomes %#x, expected %#x", name, x, b, got, want[i])
					}
				}
			})
		})
	}
}
