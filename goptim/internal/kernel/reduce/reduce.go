// Package reduce computes sums in the order in which torch computes them, so norms and means are bit-for-bit equal to torch's. The
// order does not depend on the machine's vector width: torch compiles its sums for 256 bits on x86-64, and for 128 bits on arm64.
package reduce

import (
	"math"
	"math/bits"
	"unsafe"

	"github.com/goptim/goptim/goptim/internal/kernel"
)

// An Order is the part of the order of norms and sums that depends on torch's compiler and on the architecture.
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

// lanesIn returns the number of lanes of a sum.
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

// Few reports whether n elements do not fill the lanes of a sum. Then their sums and norms are the same in all fused orders.
func Few[T kernel.Float](n int, o Order) bool { return n < lanesIn[T](o) }

// Mean is torch's mean of x with the given number of threads, over which torch divides a long sum.
func Mean[T kernel.Float](x []T, threads int, o Order) T {
	n := len(x)
	parts, size := Parts(n, threads)
	if parts == 1 {
		return Sum(x, o) / T(n)
	}
	sums := make([]T, parts)
	for i := range parts {
		sums[i] = Sum(x[min(i*size, n):min((i+1)*size, n)], o)
	}
	return MeanOf(sums, n, threads, o)
}

// Parts returns the number of parts into which torch divides a sum of n elements over threads, and their size. The last ones may be
// shorter.
func Parts(n, threads int) (parts, size int) {
	parts = min(threads, (n+Grain-1)/Grain)
	if n < Grain || parts < 2 {
		return 1, n
	}
	return parts, (n + parts - 1) / parts
}

// MeanOf returns the mean of n elements from the sums of their parts.
func MeanOf[T kernel.Float](sums []T, n, threads int, o Order) T {
	return SumOf(sums, threads, o) / T(n)
}

// SumOf returns the sum of some elements from those of their parts.
func SumOf[T kernel.Float](sums []T, threads int, o Order) T {
	if len(sums) == 1 {
		return sums[0]
	}
	all := make([]T, threads)
	copy(all, sums)
	return Sum(all, o)
}

// Sum is torch's sum of a row: the lanes of four concurrent vectors, in a cascade of four levels.
func Sum[T kernel.Float](x []T, o Order) T {
	t := TotalOf[T](len(x), o)
	t.Next(x)
	return t.End()
}

// A Total computes Sum incrementally, while the elements are in the cache.
type Total[T kernel.Float] struct {
	w, power int // the elements of a vector, and the binary logarithm of the rows of four vectors in a level
	rows     int // the number of rows that have been added
	top      int // the highest level that is used
	level    [levels][4][widest]T
	rest     [4 * widest]T // the last elements, which do not fill a row
	left     int           // their number
}

// levels is the number of levels of a cascade. A full level is added to the next one, so that numbers of similar size are added.
const levels = 4

// TotalOf returns the total of n elements before the first of them.
func TotalOf[T kernel.Float](n int, o Order) (t Total[T]) {
	t.Begin(n, o)
	return t
}

// Begin begins a total of n elements.
func (t *Total[T]) Begin(n int, o Order) {
	if t.w = lanesIn[T](o); n < t.w {
		t.w = 1
	}
	t.power = LevelPower(n / t.w / 4)
	t.rows, t.top, t.left, t.level[0] = 0, 0, 0, [4][widest]T{}
}

// Next adds the elements of x after those of the last call. Their number must be a multiple of 64, unless it is the last call.
func (t *Total[T]) Next(x []T) {
	line, step := 4*t.w, 1<<t.power
	rows := len(x) / line
	for at := 0; at < rows; {
		n := min(step-t.rows&(step-1), rows-at)
		addFours(&t.level[0], x[line*at:line*(at+n)], t.w)
		at, t.rows = at+n, t.rows+n
		if t.rows&(step-1) == 0 {
			t.carry()
		}
	}
	t.left = copy(t.rest[:], x[rows*line:])
}

// carry adds full levels to the next ones.
func (t *Total[T]) carry() {
	for j := 1; j < levels; j++ {
		if j > t.top {
			t.top, t.level[j] = j, [4][widest]T{}
		}
		moveUp(&t.level[j], &t.level[j-1])
		if t.rows&((1<<t.power-1)<<(j*t.power)) != 0 {
			break
		}
	}
}

// End returns the sum of all elements.
func (t *Total[T]) End() T {
	sums, w := &t.level[0], t.w
	for j := 1; j <= t.top; j++ {
		moveUp(sums, &t.level[j])
	}
	rest := t.rest[:t.left]
	for ; len(rest) >= w; rest = rest[w:] {
		add(&sums[0], rest[:w])
	}
	for k := range sums[1:] {
		add(&sums[0], sums[1+k][:w])
	}
	var sum T
	for _, x := range rest {
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

// moveUp adds the lanes of a level to those of another one, and clears them.
func moveUp[T kernel.Float](to, from *[4][widest]T) {
	if vectors {
		if unsafe.Sizeof(T(0)) == 4 {
			moveUpFloat32((*[4][widest]float32)(unsafe.Pointer(to)), (*[4][widest]float32)(unsafe.Pointer(from)))
		} else {
			moveUpFloat64((*[4][widest]float64)(unsafe.Pointer(to)), (*[4][widest]float64)(unsafe.Pointer(from)))
		}
		return
	}
	for k := range to {
		add(&to[k], from[k][:])
	}
	*from = [4][widest]T{}
}

// addFours adds every fourth vector of w elements to one of the sums.
func addFours[T kernel.Float](sums *[4][widest]T, x []T, w int) {
	if vectors && w == lanesOf[T]() {
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
