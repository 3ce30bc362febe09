package cpow

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// oracle reads all x, then as many y, and writes all x**y of the C library. It
// calls C's pow and not Python's x ** y, which may raise or return a complex number.
const oracle = `
import array, ctypes, sys
try:
    pow = ctypes.CDLL("libm.so.6").pow
except (OSError, AttributeError):
    sys.exit(77)
pow.argtypes, pow.restype = [ctypes.c_double] * 2, ctypes.c_double
v = array.array("d", sys.stdin.buffer.read())
n = len(v) // 2
sys.stdout.buffer.write(array.array("d", map(pow, v[:n], v[n:])).tobytes())
`

// Glibc's pow returns plainZ for plainX**plainY only without FMA.
const (
	plainX = .9
	plainY = 348
	plainZ = 0x1.12ee395586fb6p-53
)

// cPow is the C library's x**y. It skips the test if the C library is not a valid oracle.
func cPow(t *testing.T, x, y []float64) []float64 {
	t.Helper()
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("no python3 to ask for the C library's pow")
	}
	x, y = append(x, plainX), append(y, plainY)
	in, err := binary.Append(nil, binary.NativeEndian, append(x, y...))
	require.NoError(t, err)
	var stderr bytes.Buffer
	cmd := exec.Command(python, "-c", oracle)
	cmd.Stdin, cmd.Stderr = bytes.NewReader(in), &stderr
	out, err := cmd.Output()
	if exit := new(exec.ExitError); errors.As(err, &exit) && exit.ExitCode() == 77 {
		t.Skip("no libm.so.6 with a pow")
	}
	require.NoError(t, err, "%s", &stderr)
	z := make([]float64, len(x))
	_, err = binary.Decode(out, binary.NativeEndian, z)
	require.NoError(t, err)
	if z[len(z)-1] == plainZ {
		t.Skip("libm.so.6 has glibc's pow without FMA, which differs")
	}
	return z[:len(z)-1]
}

func TestExpAndLog(t *testing.T) {
	// Glibc's results.
	for _, c := range []struct{ x, exp float64 }{
		{-1e-3, 0x1.ff7cfe56f1a9ep-1}, {-.7, 0x1.fc80db9dd5542p-2}, {3.7, 0x1.4394144eeec81p+5},
	} {
		assert.Equal(t, c.exp, Exp(c.x), "exp(%v)", c.x)
	}
	for _, x := range []float64{.9, .999, .9999, .5 + 1e-9, 1.75, math.MaxFloat64} {
		assert.InEpsilon(t, math.Log(x), Log(x), 1e-15, "log(%v)", x)
	}
	for x, log := range map[float64]float64{0: math.Inf(-1), 5e-324: -744.4400719213812, math.Inf(1): math.Inf(1), 1: 0} {
		assert.Equal(t, log, Log(x), "log(%v)", x)
	}
	assert.True(t, math.IsNaN(Log(-1)) && math.IsNaN(Log(math.NaN())) && math.IsNaN(Exp(math.NaN())))
	assert.Equal(t, []float64{0, 1, math.Inf(1), math.Inf(1)}, []float64{Exp(math.Inf(-1)), Exp(0), Exp(math.Inf(1)), Exp(710)})
}

func TestPowEqualsC(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var x, y []float64
	type group struct {
		name       string
		begin, end int
	}
	var groups []group
	// add adds the points f(0), f(1), ... f(n-1) with a name.
	add := func(name string, n int, f func(i int) (x, y float64)) {
		groups = append(groups, group{name, len(x), len(x) + n})
		for i := range n {
			a, b := f(i)
			x, y = append(x, a), append(y, b)
		}
	}
	// within returns a y with x**y near 2**e.
	within := func(x, e float64) float64 { return e / math.Log2(math.Abs(x)) }
	anyFloat := func() float64 { return math.Float64frombits(rnd.Uint64()) }
	between := func(lo, hi float64) float64 { return lo + (hi-lo)*rnd.Float64() }

	steps := 50_000
	if testing.Short() {
		steps = 2_000
	}
	betas := []float64{.9, .95, .96, .98, .99, .999, .9999}
	for _, beta := range betas {
		add(fmt.Sprintf("%v**t", beta), steps, func(i int) (float64, float64) { return beta, float64(i + 1) })
	}
	add("beta**t", steps, func(i int) (float64, float64) { return rnd.Float64(), float64(rnd.IntN(steps) + 1) })
	add("beta**t in range", steps, func(i int) (float64, float64) {
		b := rnd.Float64()
		return b, math.Ceil(within(b, between(-1080, 0)))
	})
	add("0.96**(t*4e-3)", steps, func(i int) (float64, float64) { return .96, float64(i+1) * 4e-3 })
	add("beta**(t*4e-3)", steps, func(i int) (float64, float64) { return rnd.Float64(), float64(i+1) * 4e-3 })
	add("t**-0.8", steps, func(i int) (float64, float64) { return float64(i + 1), -.8 })
	add("t**0.75", steps, func(i int) (float64, float64) { return float64(i + 1), .75 })
	add("x**0.5", steps, func(i int) (float64, float64) { return rnd.Float64(), .5 })
	add("any bits", steps, func(i int) (float64, float64) { return anyFloat(), anyFloat() })
	add("any x", 2*steps, func(i int) (float64, float64) {
		a := math.Abs(anyFloat())
		return a, within(a, between(-1100, 1050))
	})
	add("x near 1", steps, func(i int) (float64, float64) {
		a := 1 + math.Ldexp(between(-1, 1), -rnd.IntN(52))
		return a, within(a, between(-1100, 1050))
	})
	add("result near 1", steps, func(i int) (float64, float64) {
		return between(0, 10), math.Ldexp(between(-1, 1), -rnd.IntN(75))
	})
	add("result near the largest and smallest", steps, func(i int) (float64, float64) {
		a := between(0, 10)
		return a, within(a, []float64{1024, -1022, -1074}[i%3]+between(-1, 1))
	})
	add("subnormal x", steps, func(i int) (float64, float64) {
		a := math.Float64frombits(rnd.Uint64N(1 << 52))
		return a, within(a, between(-1100, 1050))
	})
	add("negative x", steps, func(i int) (float64, float64) {
		a := -math.Ldexp(between(.5, 2), rnd.IntN(10))
		return a, math.Round(within(a, between(-1100, 1050)))
	})
	specials := []float64{
		0, 1, 2, 3, 4, .5, 1.5, 2.5, 1 - 0x1p-53, 1 + 0x1p-52, 0x1p-65, 0x1.8p-66, 0x1p-54, 1e-300,
		0x1p52 + .5, 0x1p52 + 1, 0x1p53 - 1, 0x1p53, 0x1p53 + 2, 0x1p62, 0x1p63, 0x1p64, 1e300,
		1022, 1023, 1024, 1025, 1073, 1074, 1075, 1076, math.MaxFloat64, 0x1p-1022, 0x1p-1022 - 0x1p-1074,
		0x1p-1074, math.Inf(1), math.NaN(), math.Float64frombits(inf | quiet | 5), math.Float64frombits(inf | 7),
	}
	for _, v := range specials {
		specials = append(specials, math.Float64frombits(math.Float64bits(v)|sign))
	}
	n := len(specials)
	add("specials", n*n, func(i int) (float64, float64) { return specials[i/n], specials[i%n] })
	add("special x", 100*n, func(i int) (float64, float64) { return specials[i%n], anyFloat() })
	add("special y", 100*n, func(i int) (float64, float64) { return anyFloat(), specials[i%n] })

	want := cPow(t, x, y)
	require.Len(t, want, len(x))
	for _, g := range groups {
		differ := 0
		for i := g.begin; i < g.end; i++ {
			got, c := math.Float64bits(Pow(x[i], y[i])), math.Float64bits(want[i])
			if got == c {
				continue
			}
			if differ++; differ <= 3 {
				t.Logf("%s: Pow(%x, %x) has the bits %#x, C's %#x", g.name, x[i], y[i], got, c)
			}
		}
		assert.Zero(t, differ, "%s: points of %d that differ", g.name, g.end-g.begin)
	}
	t.Logf("%d points", len(x))
}

// TestPow compares Pow with values of glibc 2.36 on x86-64 with FMA.
func TestPow(t *testing.T) {
	for _, v := range []struct{ x, y, want float64 }{
		{.9, 1, .9},
		{.9, 7, 0x1.e9c6a99d1cdbfp-2},
		{.9, 348, 0x1.12ee395586fb7p-53},
		{.95, 1548, 0x1.5d0108bd62841p-115},
		{.98, 3000, 0x1.79aa3908398e1p-88},
		{.99, 10, 0x1.cf0b2ad680bbfp-1},
		{.999, 3856, 0x1.59e4c39c05177p-6},
		{.9999, 494, 0x1.e75210acd7d47p-1},
		{.9999, 200000, 0x1.1affe8318ebf2p-29},
		{.96, 4e-3, 0x1.ffea9969757dbp-1},
		{.96, 2.068, 0x1.d68d1a6bdb59fp-1},
		{81, -.8, 0x1.e71d8f9518bedp-6},
		{1000, -.8, 0x1.04e74cc73ee86p-8},
		{84, .75, 0x1.bbf1fe2792415p+4},
		{.3, .5, 0x1.186f174f88472p-1},
		{1.0000001, 1e9, 0x1.349445c228792p+144},
		{0x1.fffffffefb82ep-1, -0x1.117fd7903804fp+42, 0x1.fc5333c5a7901p+802},
		{0x1.fffffffffffffp+52, -1, 0x1.0000000000001p-53},
		// Large and subnormal results, overflow and underflow.
		{3, 646, 0x1.d906a378b5987p+1023},
		{10, 308, 0x1.1ccf385ebc8ap+1023},
		{-7, 365, math.Inf(-1)},
		{1 + 0x1p-52, 0x1p62, math.Inf(1)},
		{.5, 1074, 0x1p-1074},
		{10, -320, 0x7e8p-1074},
		{-2, -1073, -0x1p-1073},
		{-3, -679, math.Copysign(0, -1)},
		{0x1.6adb2b4e8b0dap-1023, -0x1.3a2fb6f537c54p-1, 0x1.5dc7d2e7657e7p+627},
		{0x1p-1074, .3, 0x1.bdb8cdadbe161p-323},
		// Negative, zero and infinite operands.
		{-1.5, -201, -0x1.571cc4af3309bp-118},
		{0, 0, 1},
		{0, -2, math.Inf(1)},
		{math.Copysign(0, -1), 3, math.Copysign(0, -1)},
		{math.Copysign(0, -1), -3, math.Inf(-1)},
		{-1, math.Inf(-1), 1},
		{.5, math.Inf(-1), math.Inf(1)},
		{.5, 1e300, 0},
		{-2, -1e300, 0},
		{5, 1e-300, 1},
		{math.Inf(-1), -3, math.Copysign(0, -1)},
		{math.Inf(1), .5, math.Inf(1)},
		{math.NaN(), 0, 1},
		{1, math.NaN(), 1},
		{math.NaN(), 2, math.NaN()},
		{2, math.NaN(), math.NaN()},
		{-2, .5, math.Float64frombits(0xfff8 << 48)},
	} {
		assert.Equal(t, math.Float64bits(v.want), math.Float64bits(Pow(v.x, v.y)), "%v**%v", v.x, v.y)
	}
}

func BenchmarkPow(b *testing.B) {
	for _, f := range []struct {
		name string
		pow  func(x, y float64) float64
	}{{"cpow", Pow}, {"math", math.Pow}} {
		b.Run(f.name, func(b *testing.B) {
			t := 0.0
			for b.Loop() {
				t++
				f.pow(.999, t)
			}
		})
	}
}
