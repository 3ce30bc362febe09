package reduce

import (
	"unsafe"

	"github.com/goptim/goptim/goptim/internal/heap"
	"github.com/goptim/goptim/goptim/internal/kernel"
)

// Columns sums the columns of a matrix that is added row by row, in the order of torch's sum over the second last dimension:
// most columns in one cascade over the rows; the last ones, which do not fill four vectors, in four cascades, each with
// every fourth row.
type Columns[T kernel.Float] struct {
	Order    Order
	rows     int
	straight cascadeOf[T]
	rest     [4]cascadeOf[T]
}

// A cascadeOf is one cascade for several adjacent columns.
type cascadeOf[T kernel.Float] struct {
	power, taken int
	levels       [4][]T
}

// Begin starts the sums of a matrix of rows x columns.
func (c *Columns[T]) Begin(rows, columns int) {
	unit := 4 * lanesIn[T](c.Order)
	if columns < unit/4 {
		unit = 4 // torch treats one element as a vector here
	}
	c.rows = rows
	rest := columns % unit
	c.straight.begin(rows, columns-rest)
	for k := range c.rest {
		c.rest[k].begin(rows/4, rest)
	}
}

func (c *cascadeOf[T]) begin(rows, columns int) {
	c.power, c.taken = LevelPower(rows), 0
	for j := range c.levels {
		clear(heap.Grown(&c.levels[j], columns))
	}
}

// Add adds row i. Rows must be added in order.
func (c *Columns[T]) Add(i int, row []T) {
	n := len(c.straight.levels[0])
	c.straight.add(row[:n])
	switch {
	case n == len(row):
	case i < c.rows&^3:
		c.rest[i%4].add(row[n:])
	default: // after the last four rows, when all other sums are complete
		c.rest[0].finish()
		addTo(c.rest[0].levels[0], row[n:])
	}
}

func (c *cascadeOf[T]) add(row []T) {
	if len(row) == 0 {
		return
	}
	addTo(c.levels[0], row)
	c.taken++
	step := 1 << c.power
	if c.taken&(step-1) != 0 {
		return
	}
	for j := 1; j < len(c.levels); j++ {
		addTo(c.levels[j], c.levels[j-1])
		clear(c.levels[j-1])
		if c.taken&((step-1)<<(j*c.power)) != 0 {
			break
		}
	}
}

// finish adds the levels to the first one. It may be called more than once.
func (c *cascadeOf[T]) finish() {
	for _, level := range c.levels[1:] {
		addTo(c.levels[0], level)
		clear(level)
	}
}

// Sums writes the current sums to sums.
func (c *Columns[T]) Sums(sums []T) {
	c.straight.finish()
	n := copy(sums, c.straight.levels[0])
	for k := range c.rest {
		c.rest[k].finish()
		if k > 0 {
			addTo(c.rest[0].levels[0], c.rest[k].levels[0])
		}
	}
	copy(sums[n:], c.rest[0].levels[0])
}

func addTo[T kernel.Float](sum, x []T) {
	i := 0
	if vectors {
		if unsafe.Sizeof(T(0)) == 4 {
			i = addToFloat32(cast[float32](sum), cast[float32](x))
		} else {
			i = addToFloat64(cast[float64](sum), cast[float64](x))
		}
	}
	for ; i < len(sum); i++ {
		sum[i] += x[i]
	}
}
