package kernel

import (
	"math"
	mathbits "math/bits"
	"math/rand/v2"
	"slices"
	"testing"
	"unsafe"
)

var stochastic = map[Format]func(x float32, random uint32) uint16{BFloat16: StochasticBFloat16, Float16: StochasticFloat16}

// below returns the largest number that is not above x in magnitude, and 2^32 times the rest in units of the distance to the next one,
// rounded down.
func (d *definition) below(x float32) (number uint16, rest uint64) {
	size := math.Abs(float64(x))
	for step := uint16(1 << 14); step > 0; step /= 2 {
		if number+step < d.infinity() && d.value(number+step) <= size {
			number += step
		}
	}
	if size >= d.value(d.infinity()) {
		return d.infinity(), 0
	}
	return number, uint64((size - d.value(number)) / (d.value(number+1) - d.value(number)) * (1 << 32))
}

// TestStochastic rounds numbers of 16 bits, their neighbors, numbers between them and random bits, with random numbers around the one
// from which on a number is rounded up.
func TestStochastic(t *testing.T) {
	for name, d := range definitions {
		numbers := []float32{math.Float32frombits(0x7f800001), math.Float32frombits(0x7fffffff), math.Float32frombits(0xff807fff), math.Float32frombits(0xff800000), math.MaxFloat32}
		for x := range d.infinity() + 1 {
			y := math.Float32bits(d.widen(x))
			for _, b := range []uint32{y - 1, y, y + 1, y + 0x123} {
				numbers = append(numbers, math.Float32frombits(b), math.Float32frombits(b^1<<31))
			}
		}
		r := rand.New(rand.NewPCG(5, 6))
		for len(numbers) < 1<<18 || len(numbers)%group != 0 {
			numbers = append(numbers, math.Float32frombits(r.Uint32()))
		}
		for at := range group { // a single one that is not normal
			for _, x := range []float32{0, 1e-6, 1e6, float32(math.Inf(1)), float32(math.NaN())} {
				for i := range group {
					if numbers = append(numbers, 1.2345); i == at {
						numbers[len(numbers)-1] = x
					}
				}
			}
		}
		for _, x := range numbers {
			if x != x {
				if got, want := stochastic[d.format](x, r.Uint32()), d.narrow(x); got != want {
					t.Fatalf("%s: a NaN %#x becomes %#x, expected %#x", name, math.Float32bits(x), got, want)
				}
				continue
			}
			below, rest := d.below(x)
			least := uint64(1<<32) - rest
			for _, random := range []uint64{0, least - 1, least, 1<<32 - 1, uint64(r.Uint32())} {
				if random >= 1<<32 {
					continue
				}
				want := below
				if random >= least {
					want++
				}
				if math.Signbit(float64(x)) {
					want |= 0x8000
				}
				if got := stochastic[d.format](x, uint32(random)); got != want {
					t.Fatalf("%s: %v (%#x) becomes %#x with %#x, expected %#x", name, x, math.Float32bits(x), got, random, want)
				}
			}
		}
		noise := NoiseOf(1, 2, 3)
		const first = 5 * group
		want, got := make([]uint16, len(numbers)), make([]uint16, len(numbers))
		for i, x := range numbers {
			want[i] = stochastic[d.format](x, noise.At(first+i))
		}
		onWidths(t, func(t *testing.T) {
			onStates(func() {
				clear(got)
				narrowWith(&noise, unsafe.Pointer(&got[0]), numbers, d.format, first)
			}, func() {
				for i := range got {
					if got[i] != want[i] {
						t.Fatalf("%s: %v (%#x) becomes %#x in vectors, expected %#x", name, numbers[i], math.Float32bits(numbers[i]), got[i], want[i])
					}
				}
			})
		})
	}
}

// TestDraws computes the random numbers of the kernels for bfloat16 from Draws as their vectors of each width do, with one lane for each
// word of two elements.
func TestDraws(t *testing.T) {
	defer func(old int) { bits = old }(bits)
	noise := NoiseOf(4, 5, 6)
	hash := func(x uint32) uint32 {
		x = (x ^ x>>16) * 0x21f0aaad
		x = (x ^ x>>15) * 0x735a2d97
		return x ^ x>>15
	}
	for _, bits = range []int{128, 256, 512} {
		const first = 7 * group
		var d Draws
		d.set(&noise, first)
		lanes := drawnLanes()
		for i := 0; i < 3*group; i += lanes {
			var drawn [2 * group]uint16 // the lower half of each lane is that of the element with an even index
			for k := range lanes / 2 {
				shift := 16 - i&16
				drawn[2*k], drawn[2*k+1] = uint16(hash(d.Next[k])>>shift), uint16(hash(d.Next[k]+d.Stride[k])>>shift)
			}
			for k := range lanes {
				if want := uint16(noise.At(first+i+k) >> 16); drawn[k] != want {
					t.Fatalf("%d bits: the number of element %d is %#x, expected %#x", bits, i+k, drawn[k], want)
				}
			}
			for k := range lanes / 2 {
				d.Next[k] += d.Advance[i%group/lanes][k]
			}
		}
	}
}

// TestAddAndSubtract adds and subtracts elements, one of which is infinite.
func TestAddAndSubtract(t *testing.T) {
	onWidths(t, func(t *testing.T) {
		for at := range group {
			a, b, sum, rest := make([]float32, group), make([]float32, group), make([]float32, group), make([]float32, group)
			for i := range group {
				a[i], b[i] = float32(i)+0.25, float32(100*i)
				sum[i], rest[i] = a[i]+b[i], b[i]-a[i]
			}
			a[at], sum[at], rest[at] = float32(math.Inf(1)), float32(math.Inf(1)), 0
			got := slices.Clone(a)
			if add(got, b); !slices.Equal(got, sum) {
				t.Fatalf("%v + %v is %v", a, b, got)
			}
			if subtract(a, b); !slices.Equal(a, rest) {
				t.Fatalf("the rest is %v, expected %v", a, rest)
			}
		}
	})
}

// TestNoise compares the noise with the definition in docs/half.md. Inverting a bit of the seed, the step, the parameter or the
// element inverts each bit of a random number in half of all cases.
func TestNoise(t *testing.T) {
	if got, want := NoiseOf(0, 1, 0), (Noise{start: 0xd107f8fd, stride: 0x943afb11, On: true}); got != want {
		t.Errorf("the noise is %#v, expected %#v", got, want)
	}
	const trials = 1 << 13
	r := rand.New(rand.NewPCG(1, 2))
	for _, c := range []struct {
		name string
		bits int
		of   func(bit int) (a, b uint32)
	}{
		{"seed", 64, func(bit int) (a, b uint32) {
			s, step, p, i := r.Uint64(), uint64(r.Uint32N(1000)), r.Uint32N(100), r.IntN(1<<20)
			x, y := NoiseOf(s, step, p), NoiseOf(s^1<<bit, step, p)
			return x.At(i), y.At(i)
		}},
		{"step", 20, func(bit int) (a, b uint32) {
			s, step, p, i := uint64(r.Uint32N(100)), uint64(r.Uint32N(1000)), r.Uint32N(100), r.IntN(1<<20)
			x, y := NoiseOf(s, step, p), NoiseOf(s, step^1<<bit, p)
			return x.At(i), y.At(i)
		}},
		{"parameter", 20, func(bit int) (a, b uint32) {
			s, step, p, i := uint64(r.Uint32N(100)), uint64(r.Uint32N(1000)), r.Uint32N(100), r.IntN(1<<20)
			x, y := NoiseOf(s, step, p), NoiseOf(s, step, p^1<<bit)
			return x.At(i), y.At(i)
		}},
		{"element", 30, func(bit int) (a, b uint32) {
			x, i := NoiseOf(uint64(r.Uint32N(100)), uint64(r.Uint32N(1000)), r.Uint32N(100)), r.IntN(1<<20)
			return x.At(i), x.At(i ^ 1<<bit)
		}},
	} {
		for bit := range c.bits {
			var flips [32]int
			for range trials {
				a, b := c.of(bit)
				for x := a ^ b; x != 0; x &= x - 1 {
					flips[mathbits.TrailingZeros32(x)]++
				}
			}
			for to, n := range flips {
				// Six standard deviations: one in 2 * 10^5 runs of 4000 comparisons fails by chance, and the seed is fixed.
				if deviation := math.Abs(float64(n)-trials/2) / math.Sqrt(trials/4); deviation > 6 {
					t.Errorf("%s: bit %d inverts bit %d in %d of %d cases, %.1f standard deviations", c.name, bit, to, n, trials, deviation)
				}
			}
		}
	}
}
