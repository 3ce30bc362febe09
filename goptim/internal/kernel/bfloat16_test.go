package kernel_test

import (
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/goptim/goptim/goptim/internal/kernel"
)

// patterns are bits of bfloat16 elements: most are ordinary numbers in some, and some special ones in others.
var patterns = map[string]func(r *rand.Rand) uint16{
	"normal": func(r *rand.Rand) uint16 { return kernel.NarrowBFloat16(float32(r.NormFloat64())) },
	"any":    func(r *rand.Rand) uint16 { return uint16(r.Uint32()) },
	"special": func(r *rand.Rand) uint16 {
		if r.IntN(4) > 0 {
			return kernel.NarrowBFloat16(float32(r.NormFloat64()))
		}
		special := []uint16{0, 1, 0x7f, 0x80, 0x7f7f, 0x7f80, 0x7f81, 0x7fbf, 0x7fc0, 0x7fff}
		return special[r.IntN(len(special))] | uint16(r.IntN(2))<<15
	},
	"large": func(r *rand.Rand) uint16 { return uint16(0x7e80+r.IntN(0x100)) | uint16(r.IntN(2))<<15 }, // sums overflow
	"tiny":  func(r *rand.Rand) uint16 { return uint16(r.IntN(0x100)) | uint16(r.IntN(2))<<15 },        // half are subnormal
}

func TestBFloat16(t *testing.T) {
	onCopies(t, testBFloat16, func(*testing.T, kernels) {})
}

// testBFloat16 compares every kernel for bfloat16 with ApplyMixed: at every length and alignment up to a few vectors, with numbers of all
// kinds, bit for bit except for the payload of a NaN, which must be quiet. It must write nothing outside the buffers.
func testBFloat16(t *testing.T, k kernels) {
	if kernel.VectorBits() == 0 {
		t.Skip("there are no kernels for bfloat16 without vectors")
	}
	random := rand.New(rand.NewPCG(5, 6))
	tested := map[string]bool{}
	for _, v := range variants[float32](k) {
		if v.halves == nil {
			continue
		}
		calls, applied := 0, 0
		for kind, pattern := range patterns {
			for n := range 3*32 + 5 {
				whole := n
				if n == 3*32 {
					whole = 1 << 12
				}
				expected, ours := make([]*stored, v.columns), make([]*stored, v.columns)
				for k := range ours {
					ours[k] = store(kernel.BFloat16, make([]float32, whole), 17+k)
					for i := range ours[k].halves {
						ours[k].halves[i] = pattern(random)
					}
					expected[k] = &stored{format: kernel.BFloat16, whole: append([]uint16(nil), ours[k].whole...)}
					expected[k].halves = expected[k].whole[17+k:][:whole]
				}
				before, o := operandsOf(expected), operandsOf(ours)
				v.mixed(&before, whole)
				v.halves(&o, whole, &applied)
				calls++
				for k := range ours {
					for i, x := range ours[k].whole {
						want := expected[k].whole[i]
						bothNaN := x&0x7fff > 0x7f80 && want&0x7fff > 0x7f80 && (k == 1 || x&0x40 != 0)
						if x != want && !bothNaN {
							t.Fatalf("%s, %s numbers, element %d of %d in buffer %d: %#x, expected %#x", v.name, kind, i-17-k, whole, k, x, want)
						}
					}
				}
			}
		}
		if strings.HasSuffix(v.name, " extreme") {
			require.Zero(t, applied)
			continue
		}
		tested[kernelOf(v.name)] = true
		require.Greater(t, applied, calls, "%s leaves steps to ApplyMixed", v.name) // one call for the tail
	}
	for name := range k.bfloat16 {
		assert.True(t, tested[name], "%s for bfloat16 is not tested", name)
	}
}

// TestBFloat16Roundings compares every kernel for bfloat16 with ApplyMixed if the parameter is rounded with random numbers or has a
// compensation, for parts of a tensor of every length up to a few vectors, from every place in a group of 32 elements on. The bits are
// the same, except for the payload of a NaN.
func TestBFloat16Roundings(t *testing.T) {
	onCopies(t, testBFloat16Roundings, func(*testing.T, kernels) {})
}

func testBFloat16Roundings(t *testing.T, k kernels) {
	if kernel.VectorBits() == 0 {
		t.Skip("there are no kernels for bfloat16 without vectors")
	}
	random := rand.New(rand.NewPCG(7, 8))
	const around = 17
	// A kernel that stores the parameter only if it has a compensation: the sum of both may be rounded to other numbers.
	b := &builder[float32]{kernels: k}
	add(b, "ADOPT first step", 3, kernel.ADOPT{Coupled: kernel.CoupledOf(false, .01), First: 1}, fromSecond)
	for _, v := range append(b.variants, variants[float32](k)...) {
		if v.halves == nil || strings.HasSuffix(v.name, " extreme") {
			continue
		}
		if v.name == "ADOPT first" || strings.HasPrefix(v.name, "Prodigy") && kernelOf(v.name) != "Prodigy" { // the first buffer is not the parameter
			continue
		}
		for _, rounding := range []string{"noise", "kahan"} {
			applied := 0
			for _, kind := range []string{"normal", "special", "large", "tiny"} {
				for n := range 3*32 + 2 {
					whole := n
					if n == 3*32+1 {
						whole = 1<<12 + 7
					}
					first := []int{0, 64, 1<<33 - 64, 1<<20 - 32}[n/8%4] + random.IntN(2)*random.IntN(32)
					columns := v.columns
					if rounding == "kahan" {
						columns++
					}
					expected, ours := make([]*stored, columns), make([]*stored, columns)
					for k := range ours {
						ours[k] = store(kernel.BFloat16, make([]float32, whole), around)
						for i := range ours[k].halves {
							ours[k].halves[i] = patterns[kind](random)
							if k == v.columns && n%2 == 0 { // a usual compensation
								ours[k].halves[i] = kernel.NarrowBFloat16(kernel.WidenBFloat16(ours[0].halves[i]) / (300 + float32(i%7)))
							}
						}
						expected[k] = &stored{format: kernel.BFloat16, whole: slices.Clone(ours[k].whole)}
						expected[k].halves = expected[k].whole[around:][:whole]
					}
					before, o := operandsOf(expected[:v.columns]), operandsOf(ours[:v.columns])
					before.First, o.First = first, first
					if rounding == "kahan" {
						before.Compensation, o.Compensation = expected[v.columns].operand(), ours[v.columns].operand()
					} else {
						o.Noise = kernel.NoiseOf(random.Uint64(), 3, 2)
						before.Noise = o.Noise
					}
					v.mixed(&before, whole)
					v.halves(&o, whole, &applied)
					for k := range ours {
						for i, x := range ours[k].whole {
							want := expected[k].whole[i]
							bothNaN := x&0x7fff > 0x7f80 && want&0x7fff > 0x7f80
							if x != want && !bothNaN {
								t.Fatalf("%s, %s, %s numbers, element %d of %d from %d in buffer %d: %#x, expected %#x", v.name, rounding, kind, i-around, whole, first, k, x, want)
							}
						}
					}
				}
			}
			require.Positive(t, applied, "%s leaves steps to ApplyMixed", v.name)
		}
	}
}

// TestBFloat16Scalars has scalars for which the step is left to ApplyMixed.
func TestBFloat16Scalars(t *testing.T) {
	if kernel.VectorBits() == 0 {
		t.Skip("there are no kernels for bfloat16 without vectors")
	}
	k := registryOf("f32", kernel.VectorBits())
	payload := math.Float64frombits(0x7fffffffffffffff) // it would be rounded to -0
	unusual := kernel.Rprop{Sign: 1, EtaMinus: .5, Minus: .5, Plus: 1.2, Unusual: 1, Min: 1e-9, Max: 50}
	b := &builder[float32]{kernels: k}
	add(b, "SGD", 2, kernel.SGD{Coupled: kernel.CoupledOf(false, 0), Step: payload})
	add(b, "Rprop", 4, unusual)
	for _, v := range b.variants {
		c := make([]*stored, v.columns)
		for k := range c {
			c[k] = store(kernel.BFloat16, []float32{1, 2, 3}, 17)
		}
		o, applied := operandsOf(c), 0
		v.halves(&o, 3, &applied)
		require.Zero(t, applied, v.name)
		if v.name == "SGD" {
			require.Equal(t, []uint16{0x7fff, 0x7fff, 0x7fff}, c[0].halves)
		}
	}
}

// BenchmarkBFloat16 measures every kernel that an optimizer uses on tensors in cache: the time per element of float32, of bfloat16
// and float16 as a multiple of it, and of the other roundings as a multiple of the time of bfloat16. Those with mixed in their names
// convert blocks.
func BenchmarkBFloat16(b *testing.B) {
	benchmarkBFloat16(b, 1<<14, func(string) bool { return true })
}

// BenchmarkBFloat16Memory measures a few kernels on 16 million elements, with one thread.
func BenchmarkBFloat16Memory(b *testing.B) {
	benchmarkBFloat16(b, 1<<24, func(name string) bool {
		return slices.Contains([]string{"Adam", "SGD heavy ball", "Lion", "RMSprop"}, name)
	})
}

func benchmarkBFloat16(b *testing.B, n int, wanted func(name string) bool) {
	for _, v := range variants[float32](registryOf("f32", kernel.VectorBits())) {
		if v.halves == nil || !wanted(v.name) {
			continue
		}
		numbers := make([][]float32, v.columns)
		for k := range numbers {
			numbers[k] = make([]float32, n)
		}
		fill(numbers)
		operands := func(format kernel.Format) *kernel.Operands {
			c := make([]*stored, v.columns)
			for k := range c {
				c[k] = store(format, numbers[k], 0)
			}
			o := operandsOf(c)
			return &o
		}
		noisy := func() *kernel.Operands {
			o := operands(kernel.BFloat16)
			o.Noise = kernel.NoiseOf(1, 2, 3)
			return o
		}
		kahan := func() *kernel.Operands {
			o := operands(kernel.BFloat16)
			o.Compensation = store(kernel.BFloat16, make([]float32, n), 0).operand()
			return o
		}
		mixed := func(o *kernel.Operands) func() { return func() { v.mixed(o, n) } }
		halves := func(o *kernel.Operands) func() { return func() { v.halves(o, n, new(int)) } }
		b.Run(v.name, func(b *testing.B) {
			steps := []struct {
				name string
				base int // what the time is compared with
				step func()
			}{
				{"ns/float32", -1, func() { v.update(numbers) }},
				{"bfloat16/float32", 0, halves(operands(kernel.BFloat16))},
				{"mixed/float32", 0, mixed(operands(kernel.BFloat16))},
				{"float16/float32", 0, mixed(operands(kernel.Float16))},
				{"noise/bfloat16", 1, halves(noisy())},
				{"mixed-noise/bfloat16", 1, mixed(noisy())},
				{"kahan/bfloat16", 1, halves(kahan())},
				{"mixed-kahan/bfloat16", 1, mixed(kahan())},
			}
			best := make([]time.Duration, len(steps))
			for b.Loop() {
				for i, s := range steps {
					for range 4 {
						start := time.Now()
						s.step()
						if took := time.Since(start); best[i] == 0 || took < best[i] {
							best[i] = took
						}
					}
				}
			}
			for i, s := range steps {
				if s.base < 0 {
					b.ReportMetric(float64(best[i])/float64(n), s.name)
				} else {
					b.ReportMetric(float64(best[i])/float64(best[s.base]), s.name)
				}
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}
