// Package reduce computes sums in the order in which torch computes them on a CPU with AVX2, so norms and means are bit-for-bit
// equal to torch's. The order does not depend on the machine's vector width: torch compiles its sums for 256 bits.
package reduce

import (
	"math"
	"math/bits"
	"unsafe"

	"github.com/goptim/goptim/goptim/internal/kernel"
)

// An Order is the part of the order of a norm that depends on torch's compiler and on the architecture.
type Order struct {
	// Fused is whether every square is fused into its sum, as in torch 2.6 and on arm64. Otherwise only the last few of a norm
	// are, as in torch 2.15.
	Fused bool
	// Narrow is whether a sum has 128 bits of lanes, as on arm64, instead of 256.
	Narrow bool
}

// Orders are the orders of torch's builds: the newest for x86-64, torch 2.6 for x86-64, and those for arm64.
var Orders = [...]Order{{}, {Fused: true}, {Fused: true, Narrow: true}}

// Grain is the smallest number of elements of a sum that torch assigns to a thread.
const Grain = 32768

// widest is the number of lanes of the widest sum, that of float32.
const widest = 8

func lanesOf[T kernel.Float]() int { return 32 / int(unsafe.Sizeof(T(0))) }

// lanesIn returns the number of lanes of a norm.
func lanesIn[T kernel.Float](o Order) int {
	if o.Narrow {
		return lanesOf[T]() / 2
	}
	return lanesOf[T]()
}

// SumSquares is torch.linalg.vector_norm(x) before the square root: a sum per lane, then these sums in order, and then the
// tail.
func SumSquares[T kernel.Float](x []T, o Order) T {
	var lanes [widest]T
	whole := len(x) - len(x)%lanesIn[T](o)
	addSquares(&lanes, x[:whole], o)
	return finish(&lanes, x[whole:], o)
}

// finish adds the lanes of a norm's sum, and the squares of the tail.
func finish[T kernel.Float](lanes *[widest]T, rest []T, o Order) T {
	sum := lanes[0]
	for _, lane := range lanes[1:lanesIn[T](o)] {
		sum += lane
	}
	plain := 0
	if !o.Fused {
		plain = len(rest) &^ 3
	}
	for i, x := range rest {
		if i < plain {
			sum += T(x * x)
		} else {
			sum = fma(x, x, sum)
		}
	}
	return sum
}

func addSquares[T kernel.Float](lanes *[widest]T, x []T, o Order) {
	if vectors && !o.Narrow && len(x) > 0 {
		if unsafe.Sizeof(T(0)) == 4 {
			addSquaresFloat32((*[widest]float32)(unsafe.Pointer(lanes)), cast[float32](x), o.Fused)
		} else {
			addSquaresFloat64((*[widest]float64)(unsafe.Pointer(lanes)), cast[float64](x), o.Fused)
		}
		return
	}
	w := lanesIn[T](o)
	for ; len(x) > 0; x = x[w:] {
		for k, x := range x[:w] {
			lanes[k] = addSquare(lanes[k], x, o)
		}
	}
}

func addSquare[T kernel.Float](sum, x T, o Order) T {
	if o.Fused {
		return fma(x, x, sum)
	}
	return sum + T(x*x)
}

// MatrixSquares writes the sums of squares of the rows of a matrix to rows, and of its columns to columns, in the order of
// torch.linalg.vector_norm over the last and the second last dimension.
func MatrixSquares[T kernel.Float](x []T, rows, columns []T, o Order) {
	c, w := len(columns), lanesOf[T]()
	if c == 1 { // torch treats the only column as a row
		for i, x := range x {
			rows[i] = T(x * x)
		}
		columns[0] = SumSquares(x, o)
		return
	}
	clear(columns)
	i := 0
	if vectors && !o.Narrow && c >= w {
		if unsafe.Sizeof(T(0)) == 4 {
			i = matrixSquaresFloat32(cast[float32](x), cast[float32](rows), cast[float32](columns), o)
		} else {
			i = matrixSquaresFloat64(cast[float64](x), cast[float64](rows), cast[float64](columns), o)
		}
	}
	for ; i < len(rows); i++ {
		row := x[i*c:][:c]
		rows[i] = SumSquares(row, o)
		for j, x := range row {
			columns[j] = addSquare(columns[j], x, o)
		}
	}
}

// Mean is torch's mean of x with the given number of threads, over which torch divides a long sum.
func Mean[T kernel.Float](x []T, threads int) T {
	n := len(x)
	parts := min(threads, (n+Grain-1)/Grain)
	if n < Grain || parts < 2 {
		return Sum(x) / T(n)
	}
	size := (n + parts - 1) / parts
	sums := make([]T, threads)
	for i := range parts {
		sums[i] = Sum(x[min(i*size, n):min((i+1)*size, n)])
	}
	return Sum(sums) / T(n)
}

// Sum is torch's sum of a row: the lanes of four concurrent vectors, in a cascade of four levels.
func Sum[T kernel.Float](x []T) T {
	w := lanesOf[T]()
	if len(x) < w {
		w = 1
	}
	vectors := len(x) / w
	var sums [4][widest]T
	cascade(&sums, x[:vectors/4*4*w], w)
	for i := vectors / 4 * 4; i < vectors; i++ {
		add(&sums[0], x[i*w:][:w])
	}
	for _, s := range sums[1:] {
		add(&sums[0], s[:w])
	}
	var sum T
	for _, x := range x[vectors*w:] {
		sum += x
	}
	for _, x := range sums[0][:w] {
		sum += x
	}
	return sum
}

func add[T kernel.Float](sum *[widest]T, x []T) {
	for i, x := range x {
		sum[i] += x
	}
}

// cascade adds rows of four vectors of w elements. A full level is added to the next one, so that numbers of similar size are
// added.
func cascade[T kernel.Float](sums *[4][widest]T, x []T, w int) {
	const levels = 4
	var level [levels][4][widest]T
	rows := len(x) / (4 * w)
	power := LevelPower(rows)
	step := 1 << power
	i := 0
	take := func(n int) {
		addFours(&level[0], x[4*i*w:4*(i+n)*w], w)
		i += n
	}
	for i+step <= rows {
		take(step)
		for j := 1; j < levels; j++ {
			for k := range 4 {
				add(&level[j][k], level[j-1][k][:w])
				level[j-1][k] = [widest]T{}
			}
			if i&((step-1)<<(j*power)) != 0 {
				break
			}
		}
	}
	take(rows - i)
	for j := 1; j < levels; j++ {
		for k := range 4 {
			add(&level[0][k], level[j][k][:w])
		}
	}
	*sums = level[0]
}

// addFours adds every fourth vector of w elements to one of the sums.
func addFours[T kernel.Float](sums *[4][widest]T, x []T, w int) {
	if vectors && w > 1 {
		if unsafe.Sizeof(T(0)) == 4 {
			addFoursFloat32((*[4][widest]float32)(unsafe.Pointer(sums)), cast[float32](x))
		} else {
			addFoursFloat64((*[4][widest]float64)(unsafe.Pointer(sums)), cast[float64](x))
		}
		return
	}
	for i := 0; i < len(x); i += w {
		add(&sums[i/w%4], x[i:][:w])
	}
}

// LevelPower is the binary logarithm of the number of rows in the first level of a cascade over rows.
func LevelPower(rows int) int {
	if rows < 2 {
		return 4
	}
	return max(4, bits.Len(uint(rows-1))/4)
}

// Sqrt is the correctly rounded square root.
func Sqrt[T kernel.Float](x T) T { return T(math.Sqrt(float64(x))) }

// fma is a*b + c, rounded once.
func fma[T kernel.Float](a, b, c T) T {
	if unsafe.Sizeof(a) == 8 {
		return T(math.FMA(float64(a), float64(b), float64(c)))
	}
	p := float64(a) * float64(b) // exact
	s := p + float64(c)
	// Rounding s again gives the same result as a single rounding, unless s is halfway between two float32 or subnormal there.
	if math.Float64bits(s)&(1<<29-1) != 1<<28 && math.Abs(s) >= 0x1p-126 {
		return T(s)
	}
	return fmaExact(a, b, c)
}

func cast[To, From any](x []From) []To {
	return unsafe.Slice((*To)(unsafe.Pointer(unsafe.SliceData(x))), len(x))
}
