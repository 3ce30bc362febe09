package kernel_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// A variant is one way through a kernel: how many columns it takes, of which the second is the gradient, and the call.
type variant[T kernel.Float] struct {
	name    string
	columns int
	update  func(c [][]T)
}

func variantOf[S any, T kernel.Float](name string, columns int, f kernel.Func[S, T], h S) variant[T] {
	return variant[T]{name, columns, func(c [][]T) {
		var states [3][]T
		copy(states[:], c[2:])
		kernel.Apply(f, &h, c[0], c[1], states)
	}}
}

// rowsVariantOf gives a kernel of rows the columns in two parts of one length, and what is left.
func rowsVariantOf[S any, T kernel.Float](name string, columns int, f kernel.RowsFunc[S, T], h S) variant[T] {
	return variant[T]{name, columns, func(c [][]T) {
		var states [3][]T
		copy(states[:], c[2:])
		n := len(c[0]) / 2
		parts := []kernel.Part[T]{{At: n, Grad: c[1][n:]}, {At: 0, Grad: c[1]}}
		kernel.ApplyRows(f, &h, c[0], states, parts, n)
		kernel.ApplyRows(f, &h, c[0], states, []kernel.Part[T]{{At: 2 * n, Grad: c[1][2*n:]}}, len(c[0])-2*n)
	}}
}

// behind gives a kernel its columns behind a number of states that are not columns.
func behind[S any, T kernel.Float](numbers int, f kernel.Func[S, T]) kernel.Func[S, T] {
	return func(h *S, p, g []T, s [3][]T) {
		var states [3][]T
		copy(states[numbers:], s[:])
		f(h, p, g, states)
	}
}

// withGrad gives a kernel its gradient for states, which it only reads.
func withGrad[S any, T kernel.Float](f kernel.Func[S, T]) kernel.Func[S, T] {
	return func(h *S, p, g []T, _ [3][]T) { f(h, p, g, [3][]T{g, g, g}) }
}

// kernels are those of one type of elements.
type kernels[T kernel.Float] struct {
	adam     kernel.Func[kernel.Adam, T]
	sgd      kernel.Func[kernel.SGD, T]
	adagrad  kernel.Func[kernel.Adagrad, T]
	adadelta kernel.Func[kernel.Adadelta, T]
	adamax   kernel.Func[kernel.Adamax, T]
	asgd     kernel.Func[kernel.ASGD, T]
	nadam    kernel.Func[kernel.NAdam, T]
	radam    kernel.Func[kernel.RAdam, T]
	rmsprop  kernel.Func[kernel.RMSprop, T]
	rprop    kernel.Func[kernel.Rprop, T]

	sparseSGD     kernel.RowsFunc[kernel.SGD, T]
	sparseAdagrad kernel.RowsFunc[kernel.Adagrad, T]
	sparseAdam    kernel.RowsFunc[kernel.SparseAdam, T]
	accumulate    kernel.RowsFunc[kernel.None, T]

	adafactor   []kernel.Func[kernel.Adafactor, T]
	hfAdafactor []kernel.Func[kernel.HFAdafactor, T]

	momentum kernel.Func[kernel.MuonMomentum, T]
	update   kernel.Func[kernel.MuonUpdate, T]
	combine  kernel.Func[kernel.Combine, T]
}

func variants32() []variant[float32] {
	return variants(kernels[float32]{
		f32.Adam, f32.SGD, f32.Adagrad, f32.Adadelta, f32.Adamax, f32.ASGD, f32.NAdam, f32.RAdam, f32.RMSprop, f32.Rprop,
		f32.SparseSGD, f32.SparseAdagrad, f32.SparseAdam, f32.Accumulate,
		[]kernel.Func[kernel.Adafactor, float32]{
			f32.AdafactorMean, f32.AdafactorRow, f32.AdafactorProduct, f32.AdafactorVector, f32.AdafactorSingles,
			f32.AdafactorStep,
		},
		[]kernel.Func[kernel.HFAdafactor, float32]{
			f32.HFAdafactorMoment, f32.HFAdafactorSquares, f32.HFAdafactorFactor, f32.HFAdafactorRow, f32.HFAdafactorVector,
			f32.HFAdafactorStep,
		},
		f32.MuonMomentum, f32.MuonUpdate, f32.Combine,
	})
}

func variants64() []variant[float64] {
	return variants(kernels[float64]{
		f64.Adam, f64.SGD, f64.Adagrad, f64.Adadelta, f64.Adamax, f64.ASGD, f64.NAdam, f64.RAdam, f64.RMSprop, f64.Rprop,
		f64.SparseSGD, f64.SparseAdagrad, f64.SparseAdam, f64.Accumulate,
		[]kernel.Func[kernel.Adafactor, float64]{
			f64.AdafactorMean, f64.AdafactorRow, f64.AdafactorProduct, f64.AdafactorVector, f64.AdafactorSingles,
			f64.AdafactorStep,
		},
		[]kernel.Func[kernel.HFAdafactor, float64]{
			f64.HFAdafactorMoment, f64.HFAdafactorSquares, f64.HFAdafactorFactor, f64.HFAdafactorRow, f64.HFAdafactorVector,
			f64.HFAdafactorStep,
		},
		f64.MuonMomentum, f64.MuonUpdate, f64.Combine,
	})
}

func variants[T kernel.Float](k kernels[T]) []variant[T] {
	coupledTo := kernel.CoupledOf(false, .01)
	adam := kernel.Adam{
		Coupled: kernel.CoupledOf(false, 0), Decay: .9996, C1: kernel.WeightOf[T](.1), Beta2: .999, C2: .001, Step: -1e-3,
		BC2Sqrt: kernel.DivisorOf[T](.5), Eps: 1e-8,
	}
	coupled := adam
	coupled.Coupled, coupled.Decay, coupled.C1 = kernel.CoupledOf(true, .01), 1, kernel.WeightOf[T](.6)
	extreme := adam
	extreme.BC2Sqrt = kernel.DivisorOf[T](1e-13)
	sgd := kernel.SGD{Coupled: coupledTo, Momentum: .9, C: .7, Nesterov: 1, Step: -.1}
	first := sgd
	first.First = 1
	adagrad := kernel.Adagrad{Coupled: coupledTo, Step: -.1, Eps: 1e-8}
	loud := adagrad // without weight decay, some squares would be lost in the sum
	loud.Sign = 100
	adadelta := kernel.Adadelta{Coupled: coupledTo, Rho: .9, C: .1, Eps: 1e-6, Step: -1}
	adamax := kernel.Adamax{Coupled: coupledTo, C1: kernel.WeightOf[T](.1), Beta2: .3, Eps: 1e-8, Step: -.1}
	asgd := kernel.ASGD{Coupled: coupledTo, Decay: .99, Step: -.1, Mu: .5, Averages: 1}
	nadam := kernel.NAdam{
		Coupled: coupledTo, Decay: .99, C1: kernel.WeightOf[T](.1), Beta2: .999, C2: .001, BC2: .1, Eps: 1e-8,
		StepG: -.01, StepM: -.02,
	}
	radam := kernel.RAdam{
		Coupled: coupledTo, Decay: .99, C1: kernel.WeightOf[T](.1), Beta2: .999, C2: .001, BC1: .5, LR: .01,
	}
	rectified := radam
	rectified.Rectified, rectified.BC2Sqrt, rectified.Eps, rectified.Rect = 1, .5, 1e-8, .7
	rmsprop := kernel.RMSprop{
		Coupled: coupledTo, Alpha: .3, C: .7, Centre: kernel.WeightOf[T](.2), Eps: 1e-3, Momentum: .9, Step: -.1,
	}
	uncoupled := rmsprop
	uncoupled.Coupled = kernel.CoupledOf(true, 0)
	rprop := kernel.Rprop{Sign: 1, EtaMinus: .5, Minus: .5, Plus: 1.2, Min: 1e-9, Max: 50}
	adafactor := kernel.Adafactor{
		Sign: 1, W: kernel.WeightOf[T](.3), Eps1: 1e-7, EpsSq: 1e-14, N: 7, Row: .4, Mean: .6, Decay: .9, Step: -.1,
	}
	hfAdafactor := kernel.HFAdafactor{
		Eps1: 1e-5, Beta2: .7, C2: .3, Mean: .6, Row: .4, Clip: 1.1, LR: .1, Beta1: .9, C1: .1, Decays: 1, Decay: -.01,
	}
	return []variant[T]{
		variantOf("adafactor mean", 2, k.adafactor[0], adafactor),
		variantOf("adafactor row", 2, withGrad(k.adafactor[1]), adafactor),
		variantOf("adafactor product", 2, withGrad(k.adafactor[2]), adafactor),
		variantOf("adafactor vector", 3, k.adafactor[3], adafactor),
		variantOf("adafactor singles", 4, k.adafactor[4], adafactor),
		variantOf("adafactor step", 2, k.adafactor[5], adafactor),
		variantOf("hf adafactor moment", 2, k.hfAdafactor[0], hfAdafactor),
		variantOf("hf adafactor squares", 2, k.hfAdafactor[1], hfAdafactor),
		variantOf("hf adafactor factor", 2, k.hfAdafactor[2], hfAdafactor),
		variantOf("hf adafactor row", 2, withGrad(k.hfAdafactor[3]), hfAdafactor),
		variantOf("hf adafactor vector", 3, k.hfAdafactor[4], hfAdafactor),
		variantOf("hf adafactor step", 3, k.hfAdafactor[5], hfAdafactor),
		variantOf("adam", 4, k.adam, adam),
		variantOf("adam coupled", 4, k.adam, coupled),
		variantOf("adam extreme", 4, k.adam, extreme),
		variantOf("amsgrad", 5, k.adam, adam),
		variantOf("sgd", 2, k.sgd, sgd),
		variantOf("sgd momentum", 3, k.sgd, sgd),
		variantOf("sgd first", 3, k.sgd, first),
		variantOf("adagrad", 3, k.adagrad, adagrad),
		variantOf("adadelta", 4, k.adadelta, adadelta),
		variantOf("adamax", 4, k.adamax, adamax),
		variantOf("nadam", 4, behind(1, k.nadam), nadam),
		variantOf("asgd", 3, behind(2, k.asgd), asgd),
		variantOf("radam", 4, k.radam, radam),
		variantOf("radam rectified", 4, k.radam, rectified),
		variantOf("rmsprop", 3, k.rmsprop, rmsprop),
		variantOf("rmsprop momentum", 4, k.rmsprop, rmsprop),
		variantOf("rmsprop centered", 5, k.rmsprop, rmsprop),
		variantOf("rmsprop centered, usual", 5, k.rmsprop, uncoupled),
		variantOf("rprop", 4, k.rprop, rprop),
		rowsVariantOf("sparse sgd", 2, k.sparseSGD, sgd),
		rowsVariantOf("sparse adagrad", 3, k.sparseAdagrad, loud),
		rowsVariantOf("sparse adam", 4, k.sparseAdam, kernel.SparseAdam{Sign: 1, C1: .1, C2: .001, Eps: 1e-8, Step: -.1}),
		rowsVariantOf("accumulate", 2, k.accumulate, kernel.None{}),
		variantOf("muon momentum", 3, k.momentum, kernel.MuonMomentum{C: kernel.WeightOf[T](.1), Momentum: kernel.WeightOf[T](.9)}),
		variantOf("muon nesterov", 3, k.momentum, kernel.MuonMomentum{C: kernel.WeightOf[T](.7), Momentum: kernel.WeightOf[T](.3), Nesterov: 1}),
		variantOf("muon update", 2, k.update, kernel.MuonUpdate{Decay: .99, Step: -.1}),
		variantOf("combine", 2, withGrad(k.combine), kernel.Combine{A: [4]float64{.1, .2, .3, .4}}),
	}
}

// longest is beyond three of the widest vectors of float32, and a few more elements.
const longest = 3*16 + 5

// fill makes every element of every column another number, the same in every run; all but the parameter are positive, so
// that roots are numbers and no sign turns, and maxima are so small that every step raises them.
func fill[T kernel.Float](columns [][]T) {
	for k, c := range columns {
		for i := range c {
			c[i] = T(math.Sin(float64(1+i*7+k*131))) * T(k+1)
			if k > 0 {
				c[i] *= c[i]
			}
			if k > 3 {
				c[i] *= 1e-12
			}
		}
	}
}

func TestGuards(t *testing.T) {
	t.Run("float32", func(t *testing.T) { testGuards(t, variants32()) })
	t.Run("float64", func(t *testing.T) { testGuards(t, variants64()) })
}

// testGuards runs every kernel on columns between guard values, at every length and alignment: it must write all
// elements, nothing beside them, and not the gradient.
func testGuards[T kernel.Float](t *testing.T, variants []variant[T]) {
	const guard, around = 12345, 17
	for _, v := range variants {
		for n := range longest + 1 {
			before := make([][]T, v.columns)
			columns := make([][]T, v.columns)
			whole := make([][]T, v.columns)
			for k := range columns {
				whole[k] = make([]T, around+k+n+around)
				for i := range whole[k] {
					whole[k][i] = guard
				}
				columns[k] = whole[k][around+k:][:n]
			}
			fill(columns)
			for k := range columns {
				before[k] = append([]T(nil), columns[k]...)
			}
			v.update(columns)
			for k := range columns {
				for i, x := range whole[k] {
					if i < around+k || i >= around+k+n {
						require.Equal(t, T(guard), x, "%s, %d elements: column %d is written at %d", v.name, n, k, i-around-k)
					}
				}
				for i := range columns[k] {
					if k == 1 {
						require.Equal(t, before[k][i], columns[k][i], "%s, %d elements: the gradient is written at %d", v.name, n, i)
					} else {
						require.NotEqual(t, before[k][i], columns[k][i], "%s, %d elements: column %d is not written at %d", v.name, n, k, i)
					}
				}
			}
		}
	}
}

func TestSplit(t *testing.T) {
	t.Run("float32", func(t *testing.T) { testSplit(t, variants32()) })
	t.Run("float64", func(t *testing.T) { testSplit(t, variants64()) })
}

// testSplit holds every kernel on whole columns against the same kernel on each element alone: the bits do not depend
// on how the elements fall into vectors.
func testSplit[T kernel.Float](t *testing.T, variants []variant[T]) {
	for _, v := range variants {
		for n := range longest + 1 {
			whole, single := make([][]T, v.columns), make([][]T, v.columns)
			for k := range whole {
				whole[k], single[k] = make([]T, n), make([]T, n)
			}
			fill(whole)
			fill(single)
			v.update(whole)
			for i := range n {
				element := make([][]T, v.columns)
				for k := range element {
					element[k] = single[k][i : i+1]
				}
				v.update(element)
			}
			require.Equal(t, single, whole, "%s, %d elements", v.name, n)
		}
	}
}

func TestVectorBits(t *testing.T) {
	assert.Contains(t, []int{0, 128, 256, 512}, kernel.VectorBits())
	t.Logf("vectors of %d bits", kernel.VectorBits())
	kernel.Leave()
}

func bytes[T kernel.Float](n int) int { return n * int(unsafe.Sizeof(T(0))) }

// TestQuotient holds the division without the divider against the CPU's: for square roots that take every path,
// and divisors from the most usual to the ends of what is not extreme. Adam's kernel is the way in: with exp_avg_sq
// given and beta2 of 1, a gradient of 0, exp_avg of 1 and a step of 1, the parameter becomes 1 / (sqrt(v)/by).
func TestQuotient(t *testing.T) {
	t.Run("float32", func(t *testing.T) { testQuotient(t, f32.Adam) })
	t.Run("float64", func(t *testing.T) { testQuotient(t, f64.Adam) })
}

func testQuotient[T kernel.Float](t *testing.T, f kernel.Func[kernel.Adam, T]) {
	const n = 1 << 12
	p, g, m, v := make([]T, n), make([]T, n), make([]T, n), make([]T, n)
	r := rand.New(rand.NewPCG(1, 2))
	square := func(i int) T {
		if special := []float64{0, math.Copysign(0, -1), math.Inf(1), math.NaN(), -1, 1, 0x1p-149, math.MaxFloat32}; i < len(special) {
			return T(special[i])
		}
		return T(math.Ldexp(1+r.Float64(), r.IntN(250)-125))
	}
	divisors := []float64{1, 0x1.fffffep-1, 0x1.fffffffffffffp-1, 0x1.000002p0, 0x1.0000000000001p0, 0x1p-40, 0x1p40, .5, 1.0 / 3}
	for len(divisors) < 500 {
		divisors = append(divisors, math.Sqrt(1-math.Pow(r.Float64(), float64(1+r.IntN(1000)))))
	}
	for _, by := range divisors {
		h := kernel.Adam{Coupled: kernel.CoupledOf(false, 0), Beta2: 1, Step: 1, BC2Sqrt: kernel.DivisorOf[T](by), C1: kernel.WeightOf[T](0)}
		require.False(t, h.BC2Sqrt.Extreme())
		for i := range p {
			p[i], m[i], v[i] = 0, 1, square(i)
		}
		kernel.Apply(f, &h, p, g, [3][]T{m, v})
		for i := range p {
			want := 1 / (T(math.Sqrt(float64(v[i])))/T(by) + T(h.Eps))
			if p[i] != want && (p[i] == p[i] || want == want) {
				require.Failf(t, "quotient", "sqrt(%v)/%v: 1 / it is %v, expected %v", v[i], by, p[i], want)
			}
		}
	}
}

func TestPrefetchOfWrongAddressesIsHarmless(t *testing.T) {
	for _, lines := range []int{0, 1, 3} {
		kernel.Prefetch([]uintptr{0, 1, 1 << 62, ^uintptr(0)}, lines)
		kernel.Prefetch(nil, lines)
	}
}

// TestEveryKernelIsTested looks for every kernel's name in the tests of this folder, for both types of elements.
func TestEveryKernelIsTested(t *testing.T) {
	tests, err := filepath.Glob("*_test.go")
	require.NoError(t, err)
	var text strings.Builder
	for _, name := range tests {
		content, err := os.ReadFile(name)
		require.NoError(t, err)
		text.Write(content)
	}
	kernels, err := filepath.Glob("f32/*.go")
	require.NoError(t, err)
	found := 0
	for _, name := range kernels {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		require.NoError(t, err)
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Name.IsExported() {
				found++
				for _, of := range []string{"f32.", "f64."} {
					assert.True(t, regexp.MustCompile(regexp.QuoteMeta(of+f.Name.Name)+`\b`).MatchString(text.String()), "%s%s has no test", of, f.Name.Name)
				}
			}
		}
	}
	assert.Greater(t, found, 30)
}
