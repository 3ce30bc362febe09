package goptim

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"sync"
	"unsafe"

	"github.com/goptim/goptim/goptim/internal/cpow"
	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// SparseAdamOptions are the hyperparameters of SparseAdam.
type SparseAdamOptions struct {
	LR       float64    // learning rate, > 0; New takes 0 as 1e-3
	Betas    [2]float64 // decay rates of the moments, each in [0, 1); New takes {0, 0} as {0.9, 0.999}
	Eps      float64    // added to the denominator, > 0; New takes 0 as 1e-8
	Maximize bool
}

// A SparseParam is a matrix to optimize of which a step has gradients for some rows, as of an embedding's weight.
type SparseParam[T Float] struct {
	Name    string  // for error messages; may be empty
	Value   []T     // rows of Width elements, one after the other; changed in place by Step
	Width   int     // elements in a row
	Indices []int64 // the rows that Grad has, in any order; gradients of a row that comes more than once are added
	Grad    []T     // a row of Width elements for every index; only read
}

// SparseAdam is Adam (Kingma & Ba, arXiv:1412.6980, Algorithm 1) that moves only the rows that have a gradient, and the
// moments of these. Its bits are those of torch.optim.SparseAdam.
type SparseAdam[T Float] struct {
	SparseAdamOptions     // as the next Step uses them
	Workers           int // as many threads as a Step may use; 0 means GOMAXPROCS
	params            []*SparseParam[T]
	states            []sparseState[T]
}

type sparseState[T Float] struct {
	step       float64
	avg, avgSq []T
}

// NewSparseAdam makes a SparseAdam of params. The error wraps ErrOption or ErrParam.
func NewSparseAdam[T Float](params []*SparseParam[T], o SparseAdamOptions) (*SparseAdam[T], error) {
	if o.LR == 0 {
		o.LR = 1e-3
	}
	if o.Betas == [2]float64{} {
		o.Betas = [2]float64{0.9, 0.999}
	}
	if o.Eps == 0 {
		o.Eps = 1e-8
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	if len(params) == 0 {
		return nil, fmt.Errorf("goptim: SparseAdam: no parameters: %w", ErrParam)
	}
	s := &SparseAdam[T]{SparseAdamOptions: o, params: params, states: make([]sparseState[T], len(params))}
	for i, p := range params {
		if err := p.check(i); err != nil {
			return nil, err
		}
		s.states[i].avg, s.states[i].avgSq = make([]T, len(p.Value)), make([]T, len(p.Value))
	}
	return s, nil
}

// Step updates every row that has a gradient. On an error that wraps ErrOption or ErrParam nothing has changed.
func (s *SparseAdam[T]) Step() error {
	err := s.check()
	for i, p := range s.params {
		err = errors.Join(err, p.check(i))
		if err == nil && len(s.states[i].avg) != len(p.Value) {
			err = fmt.Errorf("goptim: SparseAdam: %s has %d elements, expected %d as at the first step: %w",
				p.describe(i), len(p.Value), len(s.states[i].avg), ErrParam)
		}
	}
	if err != nil {
		return err
	}
	threads := s.Workers
	if threads <= 0 {
		threads = runtime.GOMAXPROCS(0)
	}
	for i, p := range s.params {
		state := &s.states[i]
		if p.Grad == nil {
			continue
		}
		state.step++
		t := SparseTable{
			Param: address(p.Value), ExpAvg: address(state.avg), ExpAvgSq: address(state.avgSq),
			Rows: len(p.Value) / p.Width, Width: p.Width, Float64: dtype[T]() == engine.Float64,
			Indices: uintptr(unsafe.Pointer(unsafe.SliceData(p.Indices))), Values: address(p.Grad), N: len(p.Indices),
			Step: state.step, Threads: threads,
		}
		err := s.StepTable(t)
		runtime.KeepAlive(s) // the table holds addresses
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *SparseParam[T]) describe(i int) string {
	return (&Param[T]{Name: p.Name}).describe(i)
}

func (p *SparseParam[T]) check(i int) error {
	refuse := func(format string, a ...any) error {
		return fmt.Errorf("goptim: SparseAdam: %s: %s: %w", p.describe(i), fmt.Sprintf(format, a...), ErrParam)
	}
	switch {
	case p.Width < 1:
		return refuse("Width is %d, expected at least 1", p.Width)
	case len(p.Value)%p.Width != 0:
		return refuse("%d elements, expected a multiple of Width, which is %d", len(p.Value), p.Width)
	case len(p.Grad) != len(p.Indices)*p.Width:
		return refuse("the gradient has %d elements, expected %d, for %d indices", len(p.Grad), len(p.Indices)*p.Width, len(p.Indices))
	}
	for _, index := range p.Indices {
		if index < 0 || index >= int64(len(p.Value)/p.Width) {
			return refuse("index %d, expected one of %d rows", index, len(p.Value)/p.Width)
		}
	}
	return nil
}

func (o *SparseAdamOptions) check() error {
	return errors.Join(
		require(o.LR > 0, "SparseAdam", "LR", o.LR, "above 0"),
		require(o.Betas[0] >= 0 && o.Betas[0] < 1, "SparseAdam", "Betas[0]", o.Betas[0], "at least 0 and below 1"),
		require(o.Betas[1] >= 0 && o.Betas[1] < 1, "SparseAdam", "Betas[1]", o.Betas[1], "at least 0 and below 1"),
		require(o.Eps > 0, "SparseAdam", "Eps", o.Eps, "above 0"),
	)
}

// A SparseTable is the work of one step on one parameter in memory that another language owns. It is for bindings. The
// addresses are of dense memory: Rows times Width elements of the parameter and its moments, N indices (int64) of rows,
// and N rows of values. The caller answers for them.
type SparseTable struct {
	Param, ExpAvg, ExpAvgSq uintptr
	Rows, Width             int
	Float64                 bool // the type of the elements; else float32
	Indices, Values         uintptr
	N                       int
	Order                   uintptr // of N places (int64) that put Indices in order; 0: rows that repeat are added as they come
	Step                    float64 // the number of this step, from 1
	Threads                 int     // as many threads as may work on the step
	Team                    func(threads int, work func())
	Pow                     func(x, y float64) float64 // C's pow, if the caller has it; nil: this package's own
}

// StepTable runs one step. It takes the options unchecked, as torch's step does. On an error that wraps ErrParam nothing
// has changed.
func (o SparseAdamOptions) StepTable(t SparseTable) error {
	if t.Rows < 0 || t.Width < 1 || t.N < 0 || t.Rows > math.MaxInt64/8/t.Width || t.N > math.MaxInt32 {
		return fmt.Errorf("goptim: SparseAdam: %d rows of %d elements, %d of them with a gradient: %w", t.Rows, t.Width, t.N, ErrParam)
	}
	if t.N == 0 || t.Rows == 0 {
		return nil
	}
	for _, a := range []uintptr{t.Param, t.ExpAvg, t.ExpAvgSq, t.Indices, t.Values} {
		if a < 4096 {
			return fmt.Errorf("goptim: SparseAdam: address %#x: %w", a, ErrParam)
		}
	}
	pow := t.Pow
	if pow == nil {
		pow = cpow.Pow
	}
	p, _ := sparsePasses.Get().(*sparsePass)
	if p == nil {
		p = new(sparsePass)
	}
	defer sparsePasses.Put(p)
	if err := p.find(t); err != nil {
		return err
	}
	p.table = t
	p.h = kernel.SparseAdam{
		Sign: kernel.Sign(o.Maximize),
		C1:   1 - o.Betas[0],
		C2:   1 - o.Betas[1],
		Eps:  o.Eps,
		Step: -(o.LR * math.Sqrt(1-pow(o.Betas[1], t.Step)) / (1 - pow(o.Betas[0], t.Step))),
	}
	kind := engine.KindOf(engine.Float32, engine.None)
	if t.Float64 {
		kind = engine.KindOf(engine.Float64, engine.None)
	}
	// The engine splits the elements of the rows that have a gradient, as if they lay behind each other.
	rows := []engine.Row{{N: int64(len(p.starts)-1) * int64(t.Width), Kind: kind, Param: t.Param, Grad: t.Values}}
	if err := engine.Run(p, rows, t.Threads, t.Team); err != nil {
		return fmt.Errorf("goptim: SparseAdam: %w", err)
	}
	return nil
}

var sparsePasses sync.Pool

// A sparsePass is one step over the rows that have a gradient, in the order of their indices.
type sparsePass struct {
	table  SparseTable
	h      kernel.SparseAdam
	keys   [2][]entry
	sorted []entry
	starts []int // where in sorted each row begins, and at last where the last one ends
}

// An entry is a row of the gradient: its index, and its place.
type entry struct {
	index int64
	place int32
}

// find puts the rows of the gradient in order, and finds where each row of the parameter begins among them.
func (p *sparsePass) find(t SparseTable) error {
	for i := range p.keys {
		p.keys[i] = slices.Grow(p.keys[i][:0], t.N)[:t.N]
	}
	for i, index := range unsafe.Slice((*int64)(engine.Pointer(t.Indices)), t.N) {
		if index < 0 || index >= int64(t.Rows) {
			return fmt.Errorf("goptim: SparseAdam: index %d in the gradient, expected one of %d rows: %w", index, t.Rows, ErrParam)
		}
		p.keys[0][i] = entry{index, int32(i)}
	}
	if t.Order == 0 {
		p.sort(t.Rows)
	} else {
		p.sorted = p.keys[1]
		for i, place := range unsafe.Slice((*int64)(engine.Pointer(t.Order)), t.N) {
			if place < 0 || place >= int64(t.N) || (i > 0 && p.keys[0][place].index < p.sorted[i-1].index) {
				return fmt.Errorf("goptim: SparseAdam: place %d of the order is %d: %w", i, place, ErrParam)
			}
			p.sorted[i] = p.keys[0][place]
		}
	}
	p.starts = p.starts[:0]
	for i := range p.sorted {
		if i == 0 || p.sorted[i].index != p.sorted[i-1].index {
			p.starts = append(p.starts, i)
		}
	}
	p.starts = append(p.starts, t.N)
	return nil
}

// sort puts the entries in order by radix; those of one row stay as they came.
func (p *sparsePass) sort(rows int) {
	const bits = 11
	from, to := p.keys[0], p.keys[1]
	for shift := 0; rows>>shift > 0; shift += bits {
		var ends [1 << bits]int
		for _, e := range from {
			ends[e.index>>shift&(1<<bits-1)]++
		}
		sum := 0
		for d, n := range ends {
			ends[d] = sum
			sum += n
		}
		for _, e := range from {
			d := e.index >> shift & (1<<bits - 1)
			to[ends[d]] = e
			ends[d]++
		}
		from, to = to, from
	}
	p.sorted = from
}

// Update implements engine.Pass.
func (p *sparsePass) Update(_, lo, hi int) {
	if p.table.Float64 {
		updateRows(p, f64.SparseAdam, lo, hi)
	} else {
		updateRows(p, f32.SparseAdam, lo, hi)
	}
}

// ahead is how many rows before its turn a row is asked for: rows lie anywhere, and no machine guesses where.
const ahead = 6

func (p *sparsePass) prefetch(e entry, bytes int) {
	lines := min((bytes+63)/64, 16)
	at := uintptr(e.index) * uintptr(bytes)
	kernel.Prefetch(p.table.Param+at, lines)
	kernel.Prefetch(p.table.ExpAvg+at, lines)
	kernel.Prefetch(p.table.ExpAvgSq+at, lines)
	kernel.Prefetch(p.table.Values+uintptr(e.place)*uintptr(bytes), lines)
}

func updateRows[T Float](p *sparsePass, f kernel.Func[kernel.SparseAdam, T], lo, hi int) {
	t, width := &p.table, p.table.Width
	size := t.Rows * width
	param, avg, avgSq := elements[T](t.Param, size), elements[T](t.ExpAvg, size), elements[T](t.ExpAvgSq, size)
	values := elements[T](t.Values, t.N*width)
	var sum []T
	for lo < hi {
		row, first := lo/width, lo%width
		n := min(width-first, hi-lo)
		if next := row + ahead; next < len(p.starts)-1 {
			p.prefetch(p.sorted[p.starts[next]], width*int(unsafe.Sizeof(sum[0])))
		}
		group := p.sorted[p.starts[row]:p.starts[row+1]]
		at := int(group[0].place)*width + first
		g := values[at : at+n]
		if len(group) > 1 {
			sum = append(sum[:0], g...)
			for _, e := range group[1:] {
				at := int(e.place)*width + first
				for i, x := range values[at : at+n] {
					sum[i] += x
				}
			}
			g = sum
		}
		at = int(group[0].index)*width + first
		kernel.Apply(f, &p.h, param[at:at+n], g, [3][]T{avg[at : at+n], avgSq[at : at+n]})
		lo += n
	}
}

func elements[T Float](address uintptr, n int) []T {
	return unsafe.Slice((*T)(engine.Pointer(address)), n)
}
