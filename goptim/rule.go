package goptim

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"sync"
	"unsafe"

	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/bf16"
	"github.com/goptim/goptim/goptim/internal/kernel/reduce"
	"github.com/goptim/goptim/internal/steps"
)

// A spec is what distinguishes one elementwise optimizer. S is the type of its kernel's scalars.
type spec[O, S any] struct {
	class[O]
	scalarsOf  func(o *O, c *stepContext) S
	arithmetic kernels[S]
	idle       func(o *O) bool // whether a step changes nothing; may be nil
	passes     sync.Pool       // of *tablePass
	extras     []string        // the names of words after the options
}

// elementwiseSpec registers an elementwise optimizer.
//
// The function scalars computes in float64 and in torch's order. It uses the methods of the context if Python or torch may
// raise an exception. Its results depend on the row only through Types, the step count and the scalar states, whose new values
// it records in the context's log. extra names the words after the options in calls of the bindings: wideDefault or orderOfNorms.
func elementwiseSpec[O, S any](
	c class[O], scalars func(o *O, c *stepContext) S, f32 kernel.Func[S, float32], f64 kernel.Func[S, float64], extra ...string,
) *spec[O, S] {
	s := &spec[O, S]{class: c.described(), scalarsOf: scalars, arithmetic: kernels[S]{f32: f32, f64: f64, bf16: bf16.Of[S]()}, extras: extra}
	if len(s.states) > engine.States {
		panic(fmt.Sprintf("%s has %d states, expected at most %d", s.name, len(s.states), engine.States))
	}
	k := s.kind()
	k.Extra = append(k.Extra, extra...)
	k.Around = s.tensors == 0 && len(s.states) <= engine.AverageState && !s.together
	k.Narrow = true
	k.Stored = s.stored()
	k.Step, k.Spec = s.stepGroups, s
	steps.Register(k)
	return s
}

// measuring sets the measures of the spec.
func (s *spec[O, S]) measuring(measures ...measure[S]) *spec[O, S] {
	s.arithmetic.measures, s.arithmetic.desks = measures, new(sync.Pool)
	return s
}

// bounding sets how the spec bounds the norm of all gradients. See kernels.
func (s *spec[O, S]) bounding(bound func(h *S) (most float64, divisor *float64)) *spec[O, S] {
	s.arithmetic.bound = bound
	return s
}

// estimating sets the pass over the rows before that of the kernels.
func (s *spec[O, S]) estimating(estimate func(p *pass[S], threads int, team engine.Team) (bool, error)) *spec[O, S] {
	s.arithmetic.estimate = estimate
	return s
}

// stored reports whether parameters and states can be stored in other ways: see Storage.
func (s *spec[O, S]) stored() bool { return s.tensors == 0 && s.keepsMaster() }

// A bound is a spec with options. It implements rule.
type bound[O, S any] struct {
	*spec[O, S]
	o *O
}

func (b *bound[O, S]) name() string             { return b.nameOf(b.o) }
func (b *bound[O, S]) scalars(c *stepContext) S { return b.scalarsOf(b.o, c) }
func (b *bound[O, S]) kernels() kernels[S]      { return b.arithmetic }

// layout returns the layout of a row.
func (b *bound[O, S]) layout() engine.Layout {
	l := b.spec.layout(b.o)
	l.Narrow = true // as in elementwiseSpec
	return l
}

// A rule is the interface of an optimizer with its options to a pass.
type rule[S any] interface {
	name() string
	layout() engine.Layout
	scalars(c *stepContext) S
	kernels() kernels[S]
}

// A stepContext is the context in which the scalars of a row are computed.
type stepContext struct {
	row  *engine.Row
	i    int // the row's index
	log  *scalarLog
	t    float64 // the step's number, from 1; 0 if the row does not count
	seed uint64  // of stochastic rounding
	pow  func(x, y float64) float64
	cExp func(x float64) float64 // C's exp; nil for that of package cpow
	cLog func(x float64) float64 // C's log
	wide bool                    // torch's default dtype is float64: a new scalar state is not rounded to float32
	idle bool                    // the learning rate of the group is zero, and that of another group is not
}

// kernels are the kernels of a step, for each element type. There is none for bfloat16 without vectors, or if no optimizer of
// parameters uses it.
type kernels[S any] struct {
	f32  kernel.Func[S, float32]
	f64  kernel.Func[S, float64]
	bf16 kernel.BFloat16Func[S]
	// narrow is the operation for 16 bits if it is not that of f32, whose results are rounded once.
	narrow   func(h *S, o kernel.Operands, n int)
	measures []measure[S]
	desks    *sync.Pool // of *desk, if there are measures
	// estimate is a pass over the rows before that of the kernels, which sets their scalars and changes the options. It reports
	// whether the step goes on. It may be nil.
	estimate func(p *pass[S], threads int, team engine.Team) (bool, error)
	// bound returns a largest norm of all gradients, or 0 for none, and the divisor of the gradients. It may be nil.
	bound func(h *S) (most float64, divisor *float64)
}

// A pass is one step of rules of one kind over rows, with the distinct scalars among them.
type pass[S any] struct {
	kernels  kernels[S]
	rows     []engine.Row
	distinct []terms[S]
	at       []int // index of a row's terms
	log      scalarLog
	context  stepContext  // context of the row whose scalars are computed
	joined   []engine.Row // the rows of several tables
	added    []addition[S]
	turn     turn
	around   around

	measuring  measuring[S]
	estimating estimating
	order      reduce.Order // of norms
}

// An addition is the rows of one group, up to end.
type addition[S any] struct {
	rule    rule[S]
	context stepContext
	end     int
}

// A turn is the row whose step count and scalar states change next. They change in the order of the rows, because each may be
// memory that an earlier row reads or writes.
type turn struct {
	waiting          bool // whether some remain to be changed
	row, change, add int  // indices of the row, of its first change in the log, and of its addition
}

// terms are shared by rows of one group.
type terms[S any] struct {
	scalars  S
	layout   engine.Layout
	mixed    bool
	counts   bool
	seed     uint64
	steps, t float64 // the rows' step counts before the step and after it
	scaled   bool    // the scalars contain the factor of the gradients
}

func (p *pass[S]) begin(k kernels[S], rows []engine.Row) {
	p.kernels, p.rows, p.distinct, p.at = k, rows, p.distinct[:0], p.at[:0]
	p.added, p.turn, p.around.on, p.around.scales = p.added[:0], turn{waiting: true}, false, false
	p.measuring.on, p.measuring.threads, p.order = false, 1, reduce.Order{}
	p.log.begin()
}

// add computes the scalars of the next rows, which are one group. It changes nothing.
func (p *pass[S]) add(r rule[S], count int, c stepContext) error {
	layout := r.layout()
	shared := !layout.HasScalars()
	first, steps, last := len(p.at), 0.0, math.NaN()
	c.log = &p.log
	p.context = c
	for i := first; i < first+count; i++ {
		row := &p.rows[i]
		p.context.row, p.context.i = row, i
		counts := row.Counts(&layout)
		if p.context.t = 0; counts {
			steps, p.context.t = row.Steps(), row.Next()
		}
		if !shared || i == first || steps != last || !row.Types.Equal(&p.rows[i-1].Types) {
			p.distinct = append(p.distinct, terms[S]{
				scalars: r.scalars(&p.context), layout: layout, mixed: row.Mixed(&layout), steps: steps, t: p.context.t,
				counts: counts, seed: c.seed,
			})
			p.measuring.on = p.measuring.on || p.kernels.needs(&p.distinct[len(p.distinct)-1].scalars)
			last = steps
		}
		if p.log.err != nil {
			return fmt.Errorf("goptim: %s: %w", r.name(), p.log.err)
		}
		p.at = append(p.at, len(p.distinct)-1)
	}
	p.added = append(p.added, addition[S]{r, c, len(p.at)})
	return nil
}

// Prepare implements engine.Preparer.
func (p *pass[S]) Prepare() bool {
	for p.turn.waiting && p.turn.row < len(p.rows) {
		if !p.change() {
			return false
		}
	}
	p.turn.waiting = false
	return true
}

// change changes the step count and the scalar states of the next row. If the scalars were computed from other values,
// because an earlier row has changed them, it reports false and changes nothing.
func (p *pass[S]) change() bool {
	t := &p.turn
	row, of, end := &p.rows[t.row], &p.distinct[p.at[t.row]], t.change
	if of.counts && row.Steps() != of.steps {
		return false
	}
	for ; end < len(p.log.changes) && p.log.changes[end].row == t.row; end++ {
		if c := &p.log.changes[end]; row.Number(c.state) != c.before {
			return false
		}
	}
	if of.counts {
		row.SetSteps(of.t)
	}
	for _, c := range p.log.changes[t.change:end] {
		row.SetNumber(c.state, c.after)
	}
	t.row, t.change = t.row+1, end
	return true
}

// advance changes the scalars of the next row, and reports whether the row can be updated: not after an error. It computes the
// scalars again only if an earlier row has changed what they were computed from.
func (p *pass[S]) advance() bool {
	if p.log.err != nil {
		return false
	}
	if p.change() {
		return true
	}
	t := &p.turn
	for p.added[t.add].end <= t.row {
		t.add++
	}
	for t.change < len(p.log.changes) && p.log.changes[t.change].row == t.row {
		t.change++
	}
	a := &p.added[t.add]
	row, layout, log := &p.rows[t.row], a.rule.layout(), scalarLog{}
	p.context = a.context
	p.context.row, p.context.i, p.context.log = row, t.row, &log
	counts := row.Counts(&layout)
	if p.context.t = 0; counts {
		p.context.t = row.Tick()
	}
	p.at[t.row] = len(p.distinct)
	p.distinct = append(p.distinct, terms[S]{
		scalars: a.rule.scalars(&p.context), layout: layout, mixed: row.Mixed(&layout), t: p.context.t, counts: counts, seed: p.context.seed,
	})
	p.scale(p.distinct[p.at[t.row]:])
	p.divide(p.distinct[p.at[t.row]:])
	for _, c := range log.changes {
		row.SetNumber(c.state, c.after)
	}
	if log.err != nil {
		p.log.err = fmt.Errorf("goptim: %s: after the rows before it were stepped: %w", a.rule.name(), log.err)
		return false
	}
	t.row++
	return true
}

// scale adds the factor of the gradients to scalars, if the kernel then has the same results as for gradients that were scaled
// before.
func (p *pass[S]) scale(some []terms[S]) {
	if !p.around.scales {
		return
	}
	for i := range some {
		t := &some[i]
		if t.mixed { // the scaled gradient may have to be rounded
			continue
		}
		if s, ok := any(&t.scalars).(interface{ Scale(x float64) bool }); ok {
			t.scaled = s.Scale(p.around.factor.X)
		}
	}
}

// Update implements engine.Pass.
func (p *pass[S]) Update(part engine.Part) {
	var scaled *buffer
	if p.around.scales {
		scaled = buffers.Get().(*buffer)
		defer buffers.Put(scaled)
	}
	for row := part.First; row <= part.Last; row++ {
		if p.turn.waiting && row >= p.turn.row && !p.advance() {
			return
		}
		r := &p.rows[row]
		t := &p.distinct[p.at[row]]
		if next := row + ahead; next <= part.Last {
			p.rows[next].Prefetch(&t.layout)
			if p.around.averages {
				p.rows[next].PrefetchAverage(0, p.rows[next].FirstLines())
			}
		}
		if lo, hi := part.Of(row, int(r.N)); lo < hi {
			p.updateRow(t, r, lo, hi, scaled)
		}
	}
}

// updateRow updates elements lo to hi of a row.
func (p *pass[S]) updateRow(t *terms[S], r *engine.Row, lo, hi int, scaled *buffer) {
	switch {
	case t.mixed:
		p.updateMixed(t, r, lo, hi, scaled)
	case p.around.on && r.DType() == engine.Float32:
		updateAround(&p.around, around32, p.kernels.f32, t, r, lo, hi, scaled)
	case p.around.on:
		updateAround(&p.around, around64, p.kernels.f64, t, r, lo, hi, scaled)
	case r.DType() == engine.Float32:
		param, grad, states := engine.View[float32](r, &t.layout, lo, hi)
		kernel.Apply(p.kernels.f32, &t.scalars, param, grad, states)
	default:
		param, grad, states := engine.View[float64](r, &t.layout, lo, hi)
		kernel.Apply(p.kernels.f64, &t.scalars, param, grad, states)
	}
}

// updateMixed updates elements lo to hi of a row whose tensors are narrow, or differ in type.
func (p *pass[S]) updateMixed(t *terms[S], r *engine.Row, lo, hi int, scaled *buffer) {
	switch {
	case p.around.on:
		updateAroundMixed(&p.around, &p.kernels, t, r, lo, hi, scaled)
	case p.kernels.narrow != nil && r.Flags&engine.Stochastic == 0:
		p.kernels.narrow(&t.scalars, engine.Operands(r, &t.layout, lo), hi-lo)
	default:
		p.kernels.apply(t, r, lo, hi)
	}
}

// apply updates elements lo to hi of a row whose tensors are narrow, or differ in type.
func (k *kernels[S]) apply(t *terms[S], r *engine.Row, lo, hi int) {
	operands := engine.Operands(r, &t.layout, lo)
	operands.Noise = r.Noise(t.seed, t.t)
	kernel.ApplyOperands(k.bf16, k.f32, &t.scalars, &operands, hi-lo)
}

// ahead is the prefetch distance of small rows, in rows.
const ahead = 2

// A tablePass is a pass over tables of the bindings. Its memory is reused by later passes.
type tablePass[O, S any] struct {
	pass[S]
	options []O
	after   []O // the options after the step, if it changes them
	rules   []bound[O, S]
}

// stepGroups steps groups together, each with its own options. Like torch's step, it does not check the options. On an
// error, nothing has changed.
func (s *spec[O, S]) stepGroups(c steps.Call) error {
	p := s.take()
	defer s.put(p)
	p.decode(s, c)
	rows, err := p.rowsOf(c)
	if err != nil {
		return err
	}
	p.begin(s.arithmetic, rows)
	i := 0
	p.measuring.threads = max(1, c.Threads)
	for g := c.Groups; g != nil; g = g.After() {
		if p.order, err = s.orderIn(g); err != nil {
			return fmt.Errorf("goptim: %s: %w", s.name, err)
		}
		context := stepContext{
			pow: powOf(c), cExp: c.Exp, cLog: c.Log, wide: s.extra(g, wideDefault) != 0, idle: s.extra(g, idleGroup) != 0, seed: g.Seed,
		}
		if err := p.add(&p.rules[i], int(g.Rows), context); err != nil {
			return err
		}
		i++
	}
	if err := p.advanceOptions(s, c); err != nil {
		return err
	}
	if c.OnlyCheck || (p.idle() && c.Around == nil) {
		return nil
	}
	if c.Around != nil {
		if err := p.around.begin(rows, &c); err != nil {
			return fmt.Errorf("goptim: %s: %w", p.rules[0].name(), err)
		}
		if !p.around.on {
			return nil
		}
		p.scale(p.distinct)
	}
	if err := p.process(c.Threads, c.Team); err != nil {
		return fmt.Errorf("goptim: %s: %w", p.rules[0].name(), err)
	}
	p.writeResults(s, c)
	return p.log.err
}

// advanceOptions computes the options after the step of each group.
func (p *tablePass[O, S]) advanceOptions(s *spec[O, S], c steps.Call) error {
	p.after = p.after[:0]
	if len(s.changed) == 0 {
		return nil
	}
	if s.advance == nil { // an estimate changes them
		return nil
	}
	p.after = append(p.after, p.options...)
	p.context = stepContext{log: &p.log, pow: powOf(c)}
	for i := range p.after {
		s.advance(&p.after[i], &p.context)
	}
	if p.log.err != nil {
		return fmt.Errorf("goptim: %s: %w", p.rules[0].name(), p.log.err)
	}
	return nil
}

// writeResults writes the options that the step has changed.
func (p *tablePass[O, S]) writeResults(s *spec[O, S], c steps.Call) {
	if len(s.changed) == 0 {
		return
	}
	after := p.after
	if s.advance == nil {
		after = p.options
	}
	i := 0
	for g := c.Groups; g != nil; g = g.After() {
		for k, f := range s.changed {
			g.Results()[k] = f.get(unsafe.Pointer(&after[i]), 0)
		}
		i++
	}
}

// extra returns a word of a group after its options, or 0 if the spec does not have it.
func (s *spec[O, S]) extra(g *steps.Group, name string) float64 {
	i := slices.Index(s.extras, name)
	if i < 0 {
		return 0
	}
	return g.Words()[s.words+i]
}

// orderIn returns the order of sums of a group. A kind without the word for it has no norms, and the order of other sums depends on
// the architecture alone.
func (s *spec[O, S]) orderIn(g *steps.Group) (reduce.Order, error) {
	if !slices.Contains(s.extras, orderOfNorms) {
		return reduce.Order{Narrow: runtime.GOARCH == "arm64"}, nil
	}
	return orderOf(s.extra(g, orderOfNorms))
}

// wideDefault is the name of a word of a call: whether torch's default dtype is float64.
const wideDefault = "default_is_float64"

// idleGroup is the name of a word of a call: whether the group's learning rate is zero while that of another one is not.
const idleGroup = "idle"

// take returns a pass for put to keep.
func (s *spec[O, S]) take() *tablePass[O, S] {
	if p, _ := s.passes.Get().(*tablePass[O, S]); p != nil {
		return p
	}
	return new(tablePass[O, S])
}

// put keeps the pass for later calls.
func (s *spec[O, S]) put(p *tablePass[O, S]) {
	clear(p.added)
	clear(p.measuring.own)
	p.rows, p.context = nil, stepContext{} // foreign addresses must not stay in a pool, which the garbage collector scans
	s.passes.Put(p)
}

// idle reports whether the options of every group change nothing.
func (p *tablePass[O, S]) idle() bool {
	for i := range p.rules {
		if r := &p.rules[i]; r.spec.idle == nil || !r.spec.idle(r.o) {
			return false
		}
	}
	return true
}

// decode reads the options of all groups.
func (p *tablePass[O, S]) decode(s *spec[O, S], c steps.Call) {
	p.options, p.rules = p.options[:0], p.rules[:0]
	for g := c.Groups; g != nil; g = g.After() {
		var o O
		s.class.decode(&o, g.Words())
		p.options = append(p.options, o)
	}
	for i := range p.options {
		p.rules = append(p.rules, bound[O, S]{s, &p.options[i]})
	}
}

// rowsOf returns the rows of all groups in order: those of a single group in place, and copies of those of several.
func (p *tablePass[O, S]) rowsOf(c steps.Call) ([]engine.Row, error) {
	if len(p.rules) == 1 {
		return rowsOf(c.Groups, p.rules[0].name(), p.rules[0].layout())
	}
	p.joined = p.joined[:0]
	i := 0
	for g := c.Groups; g != nil; g = g.After() {
		rows, err := rowsOf(g, p.rules[i].name(), p.rules[i].layout())
		if err != nil {
			return nil, fmt.Errorf("table %d: %w", i, err)
		}
		p.joined = append(p.joined, rows...)
		i++
	}
	return p.joined, nil
}
