package goptim

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"sync"

	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/goptim/internal/heap"
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/reduce"
	"github.com/goptim/goptim/internal/steps"
)

// This file contains the common code of optimizers whose states have an element per row and per column of a parameter.

// matrices is the shape of a batch of matrices, or of a vector, which has no rows and columns.
type matrices struct{ batch, rows, cols int }

// matrices returns the shape as a batch of matrices over the last two dimensions.
func (p *Param[T]) matrices() (matrices, error) {
	if len(p.Shape) == 0 {
		return matrices{}, nil
	}
	size := 1
	for _, n := range p.Shape {
		if n < 0 || (n > 0 && size > math.MaxInt/n) {
			return matrices{}, fmt.Errorf("shape %v, expected one of %d elements: %w", p.Shape, len(p.Value), ErrParam)
		}
		size *= n
	}
	if size != len(p.Value) {
		return matrices{}, fmt.Errorf("shape %v, expected one of %d elements: %w", p.Shape, len(p.Value), ErrParam)
	}
	if len(p.Shape) < 2 || size == 0 {
		return matrices{}, nil
	}
	m := matrices{rows: p.Shape[len(p.Shape)-2], cols: p.Shape[len(p.Shape)-1]}
	if max(m.rows, m.cols) > math.MaxInt32 {
		return matrices{}, fmt.Errorf("shape %v, expected matrices of at most %d rows and columns: %w", p.Shape, math.MaxInt32, ErrParam)
	}
	m.batch = size / (m.rows * m.cols)
	return m, nil
}

// matricesOf returns the shape of a row's parameter.
func matricesOf(r *engine.Row) matrices {
	m := matrices{rows: int(r.Rows), cols: int(r.Cols)}
	if m.rows != 0 {
		m.batch = int(r.N) / m.rows / m.cols
	}
	return m
}

// The states of a row. A matrix has the first two, and a vector the third.
const (
	ofRows = iota
	ofCols
	ofVector
)

// checkFactored returns an error if the states of a row do not match its matrices or vector.
func checkFactored(r *engine.Row) error {
	if r.N == 0 {
		return fmt.Errorf("no elements")
	}
	rows, cols := int64(r.Rows), int64(r.Cols)
	if (rows != 0 || cols != 0) && (rows == 0 || cols == 0 || r.N/rows/cols*rows*cols != r.N) {
		return fmt.Errorf("matrices of %d x %d in %d elements", rows, cols, r.N)
	}
	first, end := ofRows, ofVector
	if rows == 0 {
		first, end = ofVector, ofVector+1
	}
	for k := first; k < end; k++ {
		if r.State[k] < 4096 {
			return fmt.Errorf("address %#x of state %d", r.State[k], k)
		}
		if !r.Holds(k, true) {
			return fmt.Errorf("state %d of %v; expected %v", k, r.StateType[k], r.ParamType)
		}
	}
	return nil
}

const (
	// wideRow is the number of columns from which a row is processed in a separate call.
	wideRow = 16
	// smallMatrix is the maximum number of rows and columns for which each lane processes one matrix, if there are enough.
	smallMatrix = 15
)

func (m matrices) small() bool {
	return m.rows <= smallMatrix && m.cols <= smallMatrix && m.batch >= 8
}

// factoredClass registers an optimizer of batches of matrices. The arguments of its step function are the options of all
// groups and the extra words that follow them.
func factoredClass[O any](c class[O], step func(options []O, extra [][]float64, c steps.Call) error, extra ...string) *class[O] {
	c = c.described()
	k := c.kind()
	k.Extra, k.Spec, k.Narrow, k.Stored = extra, &c, true, c.keepsMaster()
	k.Step = func(call steps.Call) error {
		var options []O
		var extra [][]float64
		for g := call.Groups; g != nil; g = g.After() {
			var o O
			c.decode(&o, g.Words())
			options, extra = append(options, o), append(extra, g.Words()[c.words:])
		}
		return step(options, extra, call)
	}
	steps.Register(k)
	return &c
}

// orderOfNorms is the name of a word of a call: the index in reduce.Orders of the order in which this torch adds.
const orderOfNorms = "order"

// factoringsOf returns the factorings of a call. Its first extra word is orderOfNorms.
func factoringsOf(c steps.Call, extra []float64) (factorings, error) {
	order, err := orderOf(extra[0])
	return factorings{threads: c.Threads, team: c.Team, meanThreads: c.Threads, order: order, pow: powOf(c)}, err
}

// orderOf returns the order of a word orderOfNorms.
func orderOf(word float64) (reduce.Order, error) {
	i := int(word)
	if i < 0 || i >= len(reduce.Orders) || float64(i) != word {
		return reduce.Order{}, fmt.Errorf("order is %v, expected 0 to %d: %w", word, len(reduce.Orders)-1, ErrOption)
	}
	return reduce.Orders[i], nil
}

// factorings is the common data of a step of several parameters.
type factorings struct {
	threads     int
	team        engine.Team
	meanThreads int // the number of threads with which torch computes a mean
	order       reduce.Order
	pow         func(x, y float64) float64
	do          func(row int)
	queue       []int // indices of rows
	ranges      engine.Ranges
	more        func(row int) // adds additional memory of a row to ranges, if not nil
	beforeSort  func() bool   // called before rows are processed in another order, if not nil; reports whether they can be
	next        func(i int)
}

// minParallelFactored is the smallest number of elements for two threads. Below it, a second thread costs more than it saves.
const minParallelFactored = 1 << 15

// each calls do for each row, the largest first. If rows share memory, it processes them in order on one thread.
func (f *factorings) each(rows []engine.Row) error {
	if f.next == nil {
		f.next = func(i int) { f.do(f.queue[i]) }
	}
	total := 0
	f.queue = f.queue[:0]
	for i := range rows {
		total += int(rows[i].N)
		f.queue = append(f.queue, i)
	}
	threads := f.threads
	if total < minParallelFactored {
		threads = 1
	} else if threads > 1 && len(rows) > 1 {
		if f.shared(rows) || (f.beforeSort != nil && !f.beforeSort()) {
			threads = 1
		} else {
			slices.SortFunc(f.queue, func(i, j int) int { return cmp.Or(cmp.Compare(rows[j].N, rows[i].N), cmp.Compare(i, j)) })
		}
	}
	return engine.Each(len(rows), threads, f.team, f.next)
}

// shared reports whether one row writes memory of another one.
func (f *factorings) shared(rows []engine.Row) bool {
	f.ranges.Reset()
	for i := range rows {
		r := &rows[i]
		size, shape := r.DType().Size(), matricesOf(r)
		f.ranges.Write(r.Param, int(r.N)*size)
		f.ranges.Read(r.Grad, int(r.N)*size)
		if r.Step != 0 {
			f.ranges.Scalar(r.Step, r.StepType.Size())
		}
		if r.Flags&(engine.Master|engine.Kahan) != 0 {
			f.ranges.Write(r.State[engine.MasterState], int(r.N)*r.StateType[engine.MasterState].Size())
		}
		if shape.rows == 0 {
			f.ranges.Write(r.State[ofVector], int(r.N)*r.StateType[ofVector].Size())
		} else {
			f.ranges.Write(r.State[ofRows], shape.batch*shape.rows*r.StateType[ofRows].Size())
			f.ranges.Write(r.State[ofCols], shape.batch*shape.cols*r.StateType[ofCols].Size())
		}
		if f.more != nil {
			f.more(i)
		}
	}
	return f.ranges.Shared()
}

// widened is the number of elements that are widened at a time, if matrices are small.
const widened = 1 << 12

// eachFewMatrices calls update for a few matrices at a time, with their gradients in u and their states, all widened, and stores the
// states.
func eachFewMatrices(
	shape matrices, u []float32, g, row, col *kernel.Operand, s *scratch[float32], update func(few matrices, u, row, col []float32),
) {
	const lanes = 16 // the matrices of a call fill vectors
	rows, cols := shape.rows, shape.cols
	most := max(1, widened/(rows*cols))
	if most > lanes {
		most -= most % lanes
	}
	for b := 0; b < shape.batch; b += most {
		few := matrices{min(most, shape.batch-b), rows, cols}
		u := u[b*rows*cols:][:few.batch*rows*cols]
		ofRows, ofCols := grown(&s.row, few.batch*rows), grown(&s.col, few.batch*cols)
		g.Read(u, b*rows*cols)
		row.Read(ofRows, b*rows)
		col.Read(ofCols, b*cols)
		update(few, u, ofRows, ofCols)
		row.Write(ofRows, b*rows)
		col.Write(ofCols, b*cols)
	}
}

// scratch is the temporary memory of a parameter's step.
type scratch[T Float] struct {
	update, rows, cols, product []T
	param                       []T            // the parameter; nil if it has 16 bits
	done                        int            // the number of elements of the update that have been computed
	norm, paramNorm             reduce.Norm[T] // of the update and of the parameter
	block, row, col             []T            // elements of the parameter and the states, if these have 16 bits
	operands                    kernel.Operands
	columns                     reduce.Columns[T]
	adafactor                   kernel.Adafactor // on the heap, as required for the scalars of a kernel
	hfAdafactor                 kernel.HFAdafactor
}

// meanThreadsOf returns the number of threads with which torch computes the mean of a batch's rows. It divides only a single sum.
func (f *factorings) meanThreadsOf(shape matrices) int {
	if shape.batch == 1 {
		return f.meanThreads
	}
	return 1
}

func takeScratch[T Float](pool *sync.Pool) *scratch[T] {
	if s, _ := pool.Get().(*scratch[T]); s != nil {
		return s
	}
	return new(scratch[T])
}

// cached is the number of elements per call: enough to amortize it, and few enough to stay in the L1 cache.
const cached = 2048

// extend adds the new elements of x, if they are enough for a call.
func extend[T Float](n *reduce.Norm[T], x []T) {
	if len(x)-n.Done() >= cached {
		n.Extend(x)
	}
}

// begin starts the norms of an update of n elements and of the parameter.
func (s *scratch[T]) begin(param []T, n int, o reduce.Order) {
	grown(&s.update, n)
	s.param, s.done = param, 0
	s.norm = reduce.Norm[T]{Order: o}
	s.paramNorm = s.norm
}

// advance adds the next n elements to the norm of the parameter, whose loads overlap with divisions, and to the norm of its
// update, which are still in the L1 cache.
func (s *scratch[T]) advance(n int) {
	s.advanceUpdate(n)
	if s.param != nil {
		extend(&s.paramNorm, s.param[:s.done])
	}
}

// advanceUpdate is advance without the norm of the parameter.
func (s *scratch[T]) advanceUpdate(n int) {
	s.done += n
	extend(&s.norm, s.update[:s.done])
}

// giveBack returns the scratch to its pool, without foreign addresses, which the garbage collector would scan.
func (s *scratch[T]) giveBack(pool *sync.Pool) {
	s.param, s.operands = nil, kernel.Operands{}
	pool.Put(s)
}

// normOfParam returns the norm of a parameter of n elements in any format. It uses memory of the scratch.
func normOfParam(s *scratch[float32], p *kernel.Operands, n int, o reduce.Order) float32 {
	norm, block := reduce.Norm[float32]{Order: o}, grown(&s.block, cached)
	for lo := 0; lo < n; lo += cached {
		x := block[:min(cached, n-lo)]
		p.ReadParam(x, lo)
		norm.Next(x)
	}
	return norm.End()
}

// grown returns n elements of reused memory.
func grown[T any](s *[]T, n int) []T { return heap.Grown(s, n) }
