package goptim

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"sync"
	"unsafe"

	"github.com/goptim/goptim/goptim/internal/cpow"
	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/goptim/internal/heap"
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
	"github.com/goptim/goptim/goptim/internal/kernel/reduce"
	"github.com/goptim/goptim/goptim/internal/safetensors"
	"github.com/goptim/goptim/internal/steps"
)

// AdafactorOptions are the hyperparameters of Adafactor.
type AdafactorOptions struct {
	LR          float64    `torch:"lr" default:"1e-2" range:"[0,inf]"`           // largest relative step size, and a factor of the weight decay
	Beta2Decay  float64    `torch:"beta2_decay" default:"-0.8" range:"[-inf,0]"` // exponent of the decay of the second moment
	Eps         [2]float64 `torch:"eps,null" range:"[0,inf]"`                    // smallest root of the second moment, and smallest scale of a parameter; New replaces 0 by the machine epsilon of the element type and by 1e-3
	D           float64    `torch:"d" default:"1" range:"[1,inf]"`               // largest root mean square of an update
	WeightDecay float64    `torch:"weight_decay" range:"[0,inf]"`                // decoupled
	Maximize    bool       `torch:"maximize"`
}

var adafactorClass = factoredClass(class[AdafactorOptions]{
	name:      "Adafactor",
	states:    []state{{key: "row_var", of: steps.OfRows}, {key: "col_var", of: steps.OfCols}, {key: "variance", of: steps.OfVector}},
	encodings: map[string]any{"eps": epsilons{}},
}, stepAdafactor, orderOfNorms)

// Adafactor is the optimizer of Shazeer & Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost",
// arXiv:1804.04235, Algorithms 4 and 5. Its second moments have one element per row and one per column of each matrix. A
// Param with a Shape of two or more dimensions is a batch of matrices over the last two. Results are bit-for-bit equal to
// torch.optim.Adafactor, because sums have the same order. For elements of 16 bits, they are sums of float32 numbers.
type Adafactor[T Element] struct {
	AdafactorOptions     // used by the next Step; may be changed between steps
	Storage              // used by the next Step; may be changed between steps
	Workers          int // maximum number of threads of a Step; 0 means GOMAXPROCS
	params           []*Param[T]
	states           []adafactorState
	step             adafactorStep
	first            int // the index of the first parameter, among those of Groups
}

type adafactorState struct {
	step float32
	of   [ofVector + 1]stored // those that the shape requires
	extras
	shape matrices
}

// NewAdafactor returns a new Adafactor for params. The error wraps ErrOption or ErrParam.
func NewAdafactor[T Element](params []*Param[T], o AdafactorOptions) (*Adafactor[T], error) {
	adafactorClass.setDefaults(&o)
	if o.Eps[0] == 0 {
		o.Eps[0] = machineEpsilon[T]()
	}
	if o.Eps[1] == 0 {
		o.Eps[1] = 1e-3
	}
	if err := errors.Join(adafactorClass.checkOptions(&o), checkParams("Adafactor", params)); err != nil {
		return nil, err
	}
	a := &Adafactor[T]{AdafactorOptions: o, params: slices.Clone(params), states: make([]adafactorState, len(params))}
	for i, p := range params {
		shape, err := p.matrices()
		if err != nil {
			return nil, fmt.Errorf("goptim: Adafactor: %s: %w", p.describe(i), err)
		}
		a.states[i] = newAdafactorState(p, shape)
	}
	return a, nil
}

func newAdafactorState[T Element](p *Param[T], shape matrices) adafactorState {
	s, d := adafactorState{shape: shape}, dtype[T]()
	if shape.rows == 0 {
		s.of[ofVector] = makeStored(d, len(p.Value), 0)
	} else {
		s.of[ofRows], s.of[ofCols] = makeStored(d, shape.batch*shape.rows, 0), makeStored(d, shape.batch*shape.cols, 0)
	}
	return s
}

func machineEpsilon[T Element]() float64 {
	switch dtype[T]() {
	case engine.Float32:
		return 0x1p-23
	case engine.BFloat16:
		return 0x1p-7
	case engine.Float16:
		return 0x1p-10
	}
	return 0x1p-52
}

// Check returns the error that Step would return for bad input.
func (a *Adafactor[T]) Check() error {
	if err := a.checkParams(); err != nil {
		return err
	}
	a.gather(1)
	err := a.step.begin()
	runtime.KeepAlive(a) // the rows contain addresses
	return err
}

func (a *Adafactor[T]) checkParams() error {
	if err := errors.Join(adafactorClass.checkOptions(&a.AdafactorOptions), a.Storage.check("Adafactor")); err != nil {
		return err
	}
	for i, p := range a.params {
		s := &a.states[i]
		shape, err := p.matrices()
		if err == nil && shape != s.shape {
			err = fmt.Errorf("shape %v, expected that of the first step: %w", p.Shape, ErrParam)
		}
		if overlap(p.Value, p.Grad) {
			return p.errOverlap("Adafactor", i)
		}
		if err == nil && p.Grad != nil && len(p.Grad) != len(p.Value) {
			err = fmt.Errorf("the gradient has %d elements, expected %d: %w", len(p.Grad), len(p.Value), ErrParam)
		}
		if err != nil {
			return fmt.Errorf("goptim: Adafactor: %s: %w", p.describe(i), err)
		}
	}
	return nil
}

// MarshalBinary encodes the options and the state. See Stateful.
func (a *Adafactor[T]) MarshalBinary() ([]byte, error) { return marshal(a) }

// UnmarshalBinary restores the options and the state. See Stateful.
func (a *Adafactor[T]) UnmarshalBinary(data []byte) error { return unmarshal(a, data) }

func (a *Adafactor[T]) groups() []group   { return []group{a} }
func (a *Adafactor[T]) usable() error     { return nil }
func (a *Adafactor[T]) className() string { return adafactorClass.name }
func (a *Adafactor[T]) options() []option {
	return append(adafactorClass.options(&a.AdafactorOptions), a.Storage.options()...)
}
func (a *Adafactor[T]) handles() []handle { return handlesOf(a.params) }
func (a *Adafactor[T]) ordered() bool     { return false }

// Step updates each parameter that has a gradient. If the error wraps ErrOption or ErrParam, nothing has changed.
func (a *Adafactor[T]) Step() error {
	if err := a.checkParams(); err != nil {
		return err
	}
	if a.gather(threadsOf(a.Workers)) {
		if err := a.step.begin(); err != nil {
			return err
		}
		a.makeStates()
	}
	err := a.step.run()
	runtime.KeepAlive(a) // the rows contain addresses
	return err
}

// startAt sets the index of the first parameter, on which random numbers depend.
func (a *Adafactor[T]) startAt(first int) { a.first = first }

// gather collects the rows of one step, with the states as they are. If one is missing or of another type, it returns true, and
// makeStates changes the rows.
func (a *Adafactor[T]) gather(threads int) (incomplete bool) {
	rows, of := a.step.rows[:0], dtype[T]()
	flag, extra := a.flags(of)
	for i, p := range a.params {
		if p.Grad == nil || len(p.Value) == 0 {
			continue
		}
		s := &a.states[i]
		row := engine.Row{
			N: int64(len(p.Value)), Types: engine.TypesOf(dtype[T](), engine.Float32),
			Param: address(p.Value), Grad: address(p.Grad), Step: engine.Address(unsafe.Pointer(&s.step)),
		}
		row.Rows, row.Cols = uint32(s.shape.rows), uint32(s.shape.cols)
		for k := range s.of {
			if c := &s.of[k]; c.made() {
				row.State[k], row.StateType[k] = c.address(), c.d
				incomplete = incomplete || c.d != a.stateType(of)
			}
		}
		switch c := s.extra(flag); {
		case flag == engine.Stochastic:
			row.Flags, row.State[engine.MasterState] = flag, uintptr(a.first+i)
		case c == nil:
		case c.made():
			row.Flags, row.State[engine.MasterState], row.StateType[engine.MasterState] = flag, c.address(), extra
		default:
			incomplete = true
		}
		incomplete = incomplete || (flag != engine.Master && s.master.made()) || (flag != engine.Kahan && s.rest.made())
		rows = append(rows, row)
	}
	s := &a.step
	s.options, s.ends, s.rows = append(s.options[:0], a.AdafactorOptions), append(s.ends[:0], len(rows)), rows
	s.seeds = append(s.seeds[:0], a.Seed)
	s.threads, s.meanThreads, s.pow = threads, 1, cpow.Pow // computes means on one thread, so that the result does not depend on Workers
	return incomplete
}

// makeStates creates the states that are missing in the rows, and converts those of another type.
func (a *Adafactor[T]) makeStates() {
	flag, extra := a.flags(dtype[T]())
	at := 0
	for i, p := range a.params {
		if p.Grad == nil || len(p.Value) == 0 {
			continue
		}
		s, row := &a.states[i], &a.step.rows[at]
		for k := range s.of {
			if c := &s.of[k]; c.made() {
				*c = c.as(a.stateType(dtype[T]()))
				row.State[k], row.StateType[k] = c.address(), c.d
			}
		}
		if c := makeExtra(&s.extras, p.Value, flag, extra); c != nil {
			row.Flags, row.State[engine.MasterState], row.StateType[engine.MasterState] = flag, c.address(), extra
		}
		at++
	}
}

// stepAdafactor steps groups. Like torch's step, it does not check the options. On an error, nothing has changed.
func stepAdafactor(options []AdafactorOptions, extra [][]float64, c steps.Call) error {
	f, err := factoringsOf(c, extra[0])
	if err != nil {
		return fmt.Errorf("goptim: Adafactor: %w", err)
	}
	s := &adafactorStep{options: options, factorings: f}
	for g := c.Groups; g != nil; g = g.After() {
		rows, err := rowsOf(g, "Adafactor", engine.Layout{Counts: true, Narrow: true})
		if err != nil {
			return err
		}
		for k := range rows {
			if err := checkFactored(&rows[k]); err != nil {
				return fmt.Errorf("goptim: Adafactor: row %d: %w: %w", k, err, ErrParam)
			}
		}
		s.rows = append(s.rows, rows...)
		s.ends, s.seeds = append(s.ends, len(s.rows)), append(s.seeds, g.Seed)
	}
	if c.OnlyCheck {
		return s.begin()
	}
	return s.run()
}

// An adafactorStep is one step. Its memory is reused by later steps.
type adafactorStep struct {
	options []AdafactorOptions
	seeds   []uint64 // of each group
	ends    []int    // the end of each group's rows
	factorings
	rows    []engine.Row
	counts  []counts // of every row
	log     scalarLog
	context stepContext
	scalars []adafactorScalars // of every row
	turn    int                // the row whose step count changes next. It can be memory that an earlier row reads or writes
}

// counts are the step counts of a row before and after a step.
type counts struct{ before, after float64 }

// begin computes the scalars of the rows. It changes nothing.
func (s *adafactorStep) begin() error {
	s.log.begin()
	s.turn = 0
	s.counts = s.counts[:0]
	s.scalars = slices.Grow(s.scalars[:0], len(s.rows))[:len(s.rows)]
	for i := range s.rows {
		row := &s.rows[i]
		s.context = stepContext{row: row, i: i, log: &s.log, pow: s.pow, t: row.Next()}
		s.counts = append(s.counts, counts{row.Steps(), s.context.t})
		if s.compute(i); s.log.err != nil {
			return fmt.Errorf("goptim: Adafactor: %w", s.log.err)
		}
	}
	return nil
}

// compute computes the scalars of a row from its context.
func (s *adafactorStep) compute(i int) {
	group, _ := slices.BinarySearch(s.ends, i+1)
	s.scalars[i] = s.options[group].scalarsOf(&s.context)
	s.scalars[i].noise = s.rows[i].MatrixNoise(s.seeds[group], s.context.t)
	if s.context.log.err == nil {
		s.tryOut(i)
	}
}

// prepare changes all step counts before rows are updated in another order. It reports false if rows share a step count: then
// they are updated in order.
func (s *adafactorStep) prepare() bool {
	for ; s.turn < len(s.rows); s.turn++ {
		if !s.change() {
			return false
		}
	}
	return true
}

// change changes the step count of the next row. It reports false and changes nothing if an earlier row has changed it.
func (s *adafactorStep) change() bool {
	row, of := &s.rows[s.turn], s.counts[s.turn]
	if row.Steps() != of.before {
		return false
	}
	row.SetSteps(of.after)
	return true
}

// advance changes the step count of the next row, and reports whether the row can be updated. It computes the scalars again only
// if an earlier row has changed the step count.
func (s *adafactorStep) advance() bool {
	if s.log.err != nil {
		return false
	}
	if !s.change() {
		i, log := s.turn, scalarLog{}
		s.context = stepContext{row: &s.rows[i], i: i, log: &log, pow: s.pow, t: s.rows[i].Tick()}
		if s.compute(i); log.err != nil {
			s.log.err = fmt.Errorf("goptim: Adafactor: after the rows before it were stepped: %w", log.err)
			return false
		}
	}
	s.turn++
	return true
}

// tryOut checks for an error that depends on the elements: a factor of the update that float32 cannot represent. It can
// occur only if the step is larger than the parameter or the smallest scale of a parameter is too large for float32.
func (s *adafactorStep) tryOut(i int) {
	of := &s.scalars[i]
	if s.rows[i].Arithmetic() != engine.Float32 || !(math.Abs(of.rho) > 1 || of.eps2 > math.MaxFloat32) {
		return
	}
	if err := engine.Each(1, 1, nil, func(int) { s.updateCopy(of, s.rows[i]) }); err != nil {
		s.context.log.err = err
	}
}

// updateCopy updates a float32 copy of a row and records an error of its factor.
func (s *adafactorStep) updateCopy(of *adafactorScalars, row engine.Row) {
	shape, lengths := matricesOf(&row), [3]int{ofVector: int(row.N)}
	if shape.rows != 0 {
		lengths = [3]int{shape.batch * shape.rows, shape.batch * shape.cols}
	}
	var p []float32
	stored := engine.Stored(&row)
	stored.ReadParam(heap.Grown(&p, int(row.N)), 0)
	row.Param = address(p)
	var g []float32
	if row.GradType != engine.Float32 {
		g = copied(row.Grad, row.GradType, int(row.N))
		row.Grad = address(g)
	}
	var states [4][]float32
	for k, n := range lengths {
		if n > 0 {
			states[k] = copied(row.State[k], row.StateType[k], n)
			row.State[k] = address(states[k])
		}
	}
	s.context.narrow(updateAdafactor(of, &row, &s.factorings, &adafactor32))
	runtime.KeepAlive(p)
	runtime.KeepAlive(g)
	runtime.KeepAlive(states)
}

// copied returns a copy of n elements in Go memory, in float32.
func copied(from uintptr, d engine.DType, n int) []float32 {
	var s []float32
	heap.Grown(&s, n)
	o := engine.OperandOf(from, d)
	o.Read(s, 0)
	return s
}

// run updates the rows. Each parameter is updated on one thread because its norm is a single chain of additions.
func (s *adafactorStep) run() error {
	if err := s.begin(); err != nil {
		return err
	}
	if s.do == nil {
		s.do, s.beforeSort = s.update, s.prepare
	}
	if err := s.each(s.rows); err != nil {
		return fmt.Errorf("goptim: Adafactor: %w", err)
	}
	return s.log.err
}

func (s *adafactorStep) update(i int) {
	if i >= s.turn && !s.advance() {
		return
	}
	switch r := &s.rows[i]; {
	case r.Narrow() || !r.Uniform():
		updateAdafactorMixed(&s.scalars[i], r, &s.factorings, &adafactor32)
	case r.DType() == engine.Float32:
		updateAdafactor(&s.scalars[i], r, &s.factorings, &adafactor32)
	default:
		updateAdafactor(&s.scalars[i], r, &s.factorings, &adafactor64)
	}
}

// adafactorScalars are the scalars of a step that do not depend on the elements.
type adafactorScalars struct {
	kernel.Adafactor
	count, rho, eps2, d float64
	noise               kernel.Noise
}

func (o *AdafactorOptions) scalarsOf(c *stepContext) adafactorScalars {
	shape := matricesOf(c.row)
	h := adafactorScalars{count: c.pow(float64(c.row.N), 0.5), rho: o.LR, eps2: o.Eps[1]}
	w := c.power(c.t, o.Beta2Decay, "TypeError") // TypeError because torch then compares another complex power of the same base
	if x := c.quotient(1, c.power(c.t, 0.5, "TypeError")); x < h.rho {
		h.rho = x
	}
	h.Adafactor = kernel.Adafactor{
		Sign: kernel.Sign(o.Maximize), W: c.weight(w), Eps1: o.Eps[0], EpsSq: o.Eps[0] * o.Eps[0],
		Rows: float64(shape.rows), Cols: float64(shape.cols), Decay: decoupled(o.LR, o.WeightDecay),
	}
	if shape.rows != 0 {
		c.narrow(h.Eps1)
	}
	c.narrow(h.EpsSq)
	if h.d = float64(h.count * o.D); h.d == 0 {
		c.quotient(1, h.d)
	}
	return h
}

type adafactorKernels[T Float] struct {
	mean, row, product, vector, singles, small, step kernel.Func[kernel.Adafactor, T]
	scratches                                        sync.Pool
}

var (
	adafactor32 = adafactorKernels[float32]{
		mean: f32.AdafactorMean, row: f32.AdafactorRow, product: f32.AdafactorProduct, vector: f32.AdafactorVector, singles: f32.AdafactorSingles,
		small: f32.AdafactorSmall, step: f32.AdafactorStep,
	}
	adafactor64 = adafactorKernels[float64]{
		mean: f64.AdafactorMean, row: f64.AdafactorRow, product: f64.AdafactorProduct, vector: f64.AdafactorVector, singles: f64.AdafactorSingles,
		small: f64.AdafactorSmall, step: f64.AdafactorStep,
	}
)

// updateAdafactor updates a row and returns the factor of its update.
func updateAdafactor[T Float](of *adafactorScalars, r *engine.Row, f *factorings, k *adafactorKernels[T]) float64 {
	n, shape := int(r.N), matricesOf(r)
	p, g := elements[T](r.Param, n), elements[T](r.Grad, n)
	s := takeScratch[T](&k.scratches)
	defer s.giveBack(&k.scratches)
	s.begin(p, n, f.order)
	u, h := s.update, s.adafactorOf(of, f)
	if shape.rows == 0 {
		kernel.Apply(k.vector, h, u, g, [4][]T{elements[T](r.State[ofVector], n)})
	} else {
		row, col := elements[T](r.State[ofRows], shape.batch*shape.rows), elements[T](r.State[ofCols], shape.batch*shape.cols)
		k.update(h, shape, u, g, row, col, f.meanThreadsOf(shape), s)
	}
	h.Step = of.step(float64(s.paramNorm.Of(p)), float64(s.norm.Of(u)))
	kernel.Apply(k.step, h, p, u, [4][]T{})
	return h.Step
}

// updateAdafactorMixed is updateAdafactor for a parameter or states of 16 bits. A few matrices at a time are widened, the gradient into the
// memory of the update. All sums are those of float32 elements.
func updateAdafactorMixed(of *adafactorScalars, r *engine.Row, f *factorings, k *adafactorKernels[float32]) float64 {
	n, shape := int(r.N), matricesOf(r)
	s := takeScratch[float32](&k.scratches)
	defer s.giveBack(&k.scratches)
	s.begin(nil, n, f.order)
	u, h, o := s.update, s.adafactorOf(of, f), &s.operands
	o.Param, o.Grad = engine.OperandOf(address(u), engine.Float32), engine.OperandOf(r.Grad, r.GradType)
	if shape.rows == 0 {
		o.State[0] = engine.OperandOf(r.State[ofVector], r.StateType[ofVector])
		kernel.ApplyMixed(k.vector, h, o, n)
	} else {
		row, col := engine.OperandOf(r.State[ofRows], r.StateType[ofRows]), engine.OperandOf(r.State[ofCols], r.StateType[ofCols])
		updateMatricesMixed(k, h, shape, u, &o.Grad, &row, &col, f.meanThreadsOf(shape), s)
	}
	*o = engine.Stored(r)
	h.Step = of.step(float64(normOfParam(s, o, n, f.order)), float64(s.norm.Of(u)))
	o.Grad, o.Noise = engine.OperandOf(address(u), engine.Float32), of.noise
	kernel.ApplyMixed(k.step, h, o, n)
	return h.Step
}

// updateMatricesMixed is update for buffers in any format.
func updateMatricesMixed(
	k *adafactorKernels[float32], h *kernel.Adafactor, shape matrices, u []float32, g, row, col *kernel.Operand, meanThreads int,
	s *scratch[float32],
) {
	eachFewMatrices(shape, u, g, row, col, s, func(few matrices, u, row, col []float32) {
		k.update(h, few, u, u, row, col, meanThreads, s)
	})
}

func (s *scratch[T]) adafactorOf(of *adafactorScalars, f *factorings) *kernel.Adafactor {
	h := &s.adafactor
	*h = of.Adafactor
	h.Fused = kernel.Flag(f.order.Fused)
	return h
}

// step returns the factor of an update from the norms of the parameter and of the update.
func (of *adafactorScalars) step(paramNorm, norm float64) float64 {
	scale := of.eps2
	if x := paramNorm / of.count; x > scale {
		scale = x
	}
	clip := norm / of.d
	if !(clip > 1) {
		clip = 1
	}
	return -(scale * of.rho) / clip
}

// update writes the unclipped update of a batch of matrices to u, which may be the gradient, and updates row_var and col_var. It
// adds to the norms.
func (k *adafactorKernels[T]) update(h *kernel.Adafactor, shape matrices, u, g, row, col []T, meanThreads int, s *scratch[T]) {
	switch {
	case shape.rows == 1 && shape.cols == 1:
		for at, n := 0, len(u); at < n; at += cached {
			end := min(at+cached, n)
			kernel.Apply(k.singles, h, u[at:end], g[at:], [4][]T{row[at:], col[at:]})
			s.advance(end - at)
		}
		return
	case shape.small() && inLanes[T](shape, s.norm.Order):
		k.updateSmall(h, shape, u, g, row, col, s)
		return
	}
	size, updates := shape.rows*shape.cols, u
	for b := range shape.batch {
		u, g := updates[b*size:][:size], g[b*size:][:size]
		row, col := row[b*shape.rows:][:shape.rows], col[b*shape.cols:][:shape.cols]
		rowSums, colSums := grown(&s.rows, shape.rows), grown(&s.cols, shape.cols)
		reduce.MatrixSquares(g, rowSums, colSums, s.norm.Order)
		h.N = float64(shape.cols)
		kernel.Apply(k.mean, h, row, rowSums, [4][]T{})
		h.N = float64(shape.rows)
		kernel.Apply(k.mean, h, col, colSums, [4][]T{})
		h.Mean = float64(reduce.Mean(row, meanThreads, s.norm.Order))
		if h.Mean < float64(T(h.Eps1)) {
			h.Mean = h.Eps1
		}
		if shape.cols >= wideRow && h.Eps1 >= 0x1p-30 && h.Mean <= 0x1p60 && largest(row)*largest(col) <= 0x1p60 {
			for i, x := range row {
				h.Row = float64(x)
				kernel.Apply(k.row, h, u[i*shape.cols:][:shape.cols], g[i*shape.cols:], [4][]T{col})
				s.advance(shape.cols)
			}
			continue
		}
		product := grown(&s.product, size)
		for i, x := range row {
			for j, y := range col {
				product[i*shape.cols+j] = x * y
			}
		}
		kernel.Apply(k.product, h, u, g, [4][]T{product})
		s.advance(size)
	}
}

// inLanes reports whether the kernels that keep a matrix per lane add in this order.
func inLanes[T Float](m matrices, o reduce.Order) bool {
	return !o.Narrow || reduce.Few[T](m.rows, o) && reduce.Few[T](m.cols, o)
}

// largest returns the maximum of nonnegative numbers as a float64, or NaN if one of them is NaN.
func largest[T Float](s []T) float64 { return float64(slices.Max(s)) }

// updateSmall processes a few matrices at a time, interleaved so that each vector lane processes one, in the L1 cache.
func (k *adafactorKernels[T]) updateSmall(h *kernel.Adafactor, shape matrices, u, g, row, col []T, s *scratch[T]) {
	w, rows, cols := kernel.Lanes[T](), shape.rows, shape.cols
	size := rows * cols
	b := 0
	for n := 1; n > 0 && rows == 3 && cols == 3; b += n {
		n = kernel.AdafactorConvolutions(h, u[b*size:], g[b*size:], row[b*rows:], col[b*cols:])
		s.advanceUpdate(n * size) // not the norm of the parameter, which does not fit in the L1 cache
	}
	most := max(1, cached/2/(w*size)) * w
	memory := grown(&s.product, most*(size+rows+cols)+w*size)
	across, acrossRow, acrossCol := memory[:most*size], memory[most*size:][:most*rows], memory[most*(size+rows):][:most*cols]
	middle := memory[most*(size+rows+cols):]
	matrix, column := kernel.TransposeOf(rows, cols, middle), kernel.TransposeOf(rows, 1, middle)
	line := kernel.TransposeOf(1, cols, middle)
	for n := 0; b < shape.batch; b += n {
		n = min(most, shape.batch-b)
		filled := (n + w - 1) / w * w
		matrix.Across(across, g[b*size:], n)
		column.Across(acrossRow, row[b*rows:], n)
		line.Across(acrossCol, col[b*cols:], n)
		k.small(h, across[:filled*size], across, [4][]T{acrossRow, acrossCol})
		kernel.Leave()
		matrix.Back(u[b*size:], across, n)
		column.Back(row[b*rows:], acrossRow, n)
		line.Back(col[b*cols:], acrossCol, n)
		s.advance(n * size)
	}
}

// epsilons are Adafactor's eps in JSON, where torch's default of the first one is null.
type epsilons [2]float64

func (e *epsilons) MarshalJSON() ([]byte, error) { return tuple(e[:]).MarshalJSON() }

func (e *epsilons) UnmarshalJSON(data []byte) error {
	var all []*number
	if err := json.Unmarshal(data, &all); err != nil {
		return err
	}
	if len(all) != 2 || all[1] == nil {
		return fmt.Errorf("%s, expected two numbers", data)
	}
	e[0], e[1] = 0, float64(*all[1])
	if all[0] != nil {
		e[0] = float64(*all[0])
		return nil
	}
	e[0] = math.NaN() // until the element type is known
	return nil
}

func (a *Adafactor[T]) tensors(param int) []safetensors.Tensor {
	s, shape := &a.states[param], a.params[param].shape()
	if s.step == 0 {
		return nil
	}
	all := append([]safetensors.Tensor{scalarOf("step", s.step)}, s.extras.tensors(shape)...)
	if s.shape.rows == 0 {
		return append(all, s.of[ofVector].tensor("variance", shape))
	}
	if m, err := a.params[param].matrices(); err != nil || m != s.shape { // a state for a shape that Step rejects is saved with its old shape
		shape = []int{s.shape.batch, s.shape.rows, s.shape.cols}
	}
	row, col := slices.Clone(shape), slices.Clone(shape)
	row[len(row)-1], col[len(col)-2] = 1, 1
	return append(all, s.of[ofRows].tensor("row_var", row), s.of[ofCols].tensor("col_var", col))
}

func (a *Adafactor[T]) load(saved *savedGroup) (func(), error) {
	o, err := adafactorClass.load(saved, a.AdafactorOptions)
	storage, stored, wrong := a.Storage.load(saved)
	if err = errors.Join(err, wrong); err != nil {
		return nil, err
	}
	types := typesOf[T](stored)
	if math.IsNaN(o.Eps[0]) {
		o.Eps[0] = machineEpsilon[T]()
	}
	if err := adafactorClass.checkOptions(o); err != nil {
		return nil, err
	}
	states := make([]adafactorState, len(a.params))
	for i, p := range a.params {
		s, to := &saved.states[i], &states[i]
		shape, err := p.matrices()
		if err != nil {
			return nil, err
		}
		*to = newAdafactorState(p, shape)
		if s.empty() {
			continue
		}
		to.step = s.single("step", s.count("step"))
		if stored {
			to.extras.load(s, len(p.Value), types[0])
		}
		for k := range to.of {
			if c := &to.of[k]; c.made() {
				*c = s.stored(adafactorClass.states[k].key, c.n, types...)
			}
		}
		if err := s.end(); err != nil {
			return nil, err
		}
	}
	return func() { a.AdafactorOptions, a.states, a.Storage = *o, states, storage }, nil
}
