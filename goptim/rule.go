package goptim

import (
	"fmt"
	"math"
	"sync"

	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/internal/steps"
)

// A spec is what distinguishes one elementwise optimizer. S is the type of its kernel's scalars.
type spec[O, S any] struct {
	class[O]
	scalarsOf  func(o *O, n *now) S
	arithmetic kernels[S]
	idle       func(o *O) bool // whether a step changes nothing; may be nil
	passes     sync.Pool       // of *tablePass
}

// elementwiseSpec registers an elementwise optimizer.
//
// The function scalars computes in float64 and in torch's order. It uses the methods of now if Python or torch may raise an
// exception. Its results depend on the row only through Types, the step count and the scalar states, whose new values it
// records in now's log. extra names the words after the options in calls of the bindings. The only such word sets now.wide.
func elementwiseSpec[O, S any](
	c class[O], scalars func(o *O, n *now) S, f32 kernel.Func[S, float32], f64 kernel.Func[S, float64], extra ...string,
) *spec[O, S] {
	s := &spec[O, S]{class: c.described(), scalarsOf: scalars, arithmetic: kernels[S]{f32, f64}}
	if len(s.states) > engine.States {
		panic(fmt.Sprintf("%s has %d states, expected at most %d", s.name, len(s.states), engine.States))
	}
	k := s.kind()
	k.Extra = append(k.Extra, extra...)
	k.Around = s.tensors == 0 && len(s.states) <= engine.AverageState
	k.Step, k.Spec = s.stepGroups, s
	steps.Register(k)
	return s
}

// A bound is a spec with options. It implements rule.
type bound[O, S any] struct {
	*spec[O, S]
	o *O
}

func (b *bound[O, S]) name() string          { return b.nameOf(b.o) }
func (b *bound[O, S]) layout() engine.Layout { return b.spec.layout(b.o) }
func (b *bound[O, S]) scalars(n *now) S      { return b.scalarsOf(b.o, n) }
func (b *bound[O, S]) kernels() kernels[S]   { return b.arithmetic }

// A rule is the interface of an optimizer with its options to a pass.
type rule[S any] interface {
	name() string
	layout() engine.Layout
	scalars(n *now) S
	kernels() kernels[S]
}

// now is the context in which the scalars of a row are computed.
type now struct {
	row  *engine.Row
	i    int // the row's index
	log  *scalarLog
	t    float64 // the step's number, from 1; 0 if the layout does not count
	pow  func(x, y float64) float64
	wide bool // torch's default dtype is float64: a new scalar state is not rounded to float32
}

// kernels are the kernels of a step, for each element type.
type kernels[S any] struct {
	f32 kernel.Func[S, float32]
	f64 kernel.Func[S, float64]
}

// A pass is one step of rules of one kind over rows, with the distinct scalars among them.
type pass[S any] struct {
	kernels  kernels[S]
	rows     []engine.Row
	distinct []terms[S]
	at       []int // index of a row's terms
	log      scalarLog
	now      now          // context of the row whose scalars are computed
	joined   []engine.Row // the rows of several tables
	added    []addition[S]
	turn     turn
	around   around
}

// An addition is the rows of one group, up to end.
type addition[S any] struct {
	rule rule[S]
	now  now
	end  int
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
	steps, t float64 // the rows' step counts before the step and after it
}

func (p *pass[S]) begin(k kernels[S], rows []engine.Row) {
	p.kernels, p.rows, p.distinct, p.at = k, rows, p.distinct[:0], p.at[:0]
	p.added, p.turn, p.around.on = p.added[:0], turn{waiting: true}, false
	p.log.begin()
}

// add computes the scalars of the next rows, which are one group. It changes nothing.
func (p *pass[S]) add(r rule[S], count int, n now) error {
	layout := r.layout()
	shared := !layout.HasScalars()
	first, steps, last := len(p.at), 0.0, math.NaN()
	n.log = &p.log
	p.now = n
	for i := first; i < first+count; i++ {
		row := &p.rows[i]
		p.now.row, p.now.i = row, i
		if layout.Counts {
			steps, p.now.t = row.Steps(), row.Next()
		}
		if !shared || i == first || steps != last || !row.Types.Equal(&p.rows[i-1].Types) {
			p.distinct = append(p.distinct, terms[S]{r.scalars(&p.now), layout, steps, p.now.t})
			last = steps
		}
		if p.log.err != nil {
			return fmt.Errorf("goptim: %s: %w", r.name(), p.log.err)
		}
		p.at = append(p.at, len(p.distinct)-1)
	}
	p.added = append(p.added, addition[S]{r, n, len(p.at)})
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
	if of.layout.Counts && row.Steps() != of.steps {
		return false
	}
	for ; end < len(p.log.changes) && p.log.changes[end].row == t.row; end++ {
		if c := &p.log.changes[end]; row.Number(c.state) != c.before {
			return false
		}
	}
	if of.layout.Counts {
		row.SetSteps(of.t)
	}
	for _, c := range p.log.changes[t.change:end] {
		row.SetNumber(c.state, c.after)
	}
	t.row, t.change = t.row+1, end
	return true
}

// take changes the scalars of the next row, and reports whether the row can be updated: not after an error. It computes the
// scalars again only if an earlier row has changed what they were computed from.
func (p *pass[S]) take() bool {
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
	p.now = a.now
	p.now.row, p.now.i, p.now.log = row, t.row, &log
	if layout.Counts {
		p.now.t = row.Tick()
	}
	p.at[t.row] = len(p.distinct)
	p.distinct = append(p.distinct, terms[S]{scalars: a.rule.scalars(&p.now), layout: layout})
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

// Update implements engine.Pass.
func (p *pass[S]) Update(part engine.Part) {
	var scaled *buffer
	if p.around.scales {
		scaled = buffers.Get().(*buffer)
		defer buffers.Put(scaled)
	}
	for row := part.First; row <= part.Last; row++ {
		if p.turn.waiting && row >= p.turn.row && !p.take() {
			return
		}
		r := &p.rows[row]
		t := &p.distinct[p.at[row]]
		if next := row + ahead; next <= part.Last {
			p.rows[next].Prefetch(&t.layout)
			if p.around.averages {
				p.rows[next].PrefetchAverage()
			}
		}
		lo, hi := part.Of(row, int(r.N))
		if lo == hi {
			continue
		}
		if p.around.on {
			if r.DType() == engine.Float32 {
				updateAround(&p.around, around32, p.kernels.f32, t, r, lo, hi, scaled)
			} else {
				updateAround(&p.around, around64, p.kernels.f64, t, r, lo, hi, scaled)
			}
		} else if r.DType() == engine.Float32 {
			param, grad, states := engine.View[float32](r, &t.layout, lo, hi)
			kernel.Apply(p.kernels.f32, &t.scalars, param, grad, states)
		} else {
			param, grad, states := engine.View[float64](r, &t.layout, lo, hi)
			kernel.Apply(p.kernels.f64, &t.scalars, param, grad, states)
		}
	}
}

// ahead is the prefetch distance of small rows, in rows.
const ahead = 2

// A tablePass is a pass over tables of the bindings. Its memory is reused by later passes.
type tablePass[O, S any] struct {
	pass[S]
	options []O
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
	for g := c.Groups; g != nil; g = g.After() {
		words := g.Words()
		n := now{pow: powOf(c), wide: len(words) > s.words && words[s.words] != 0}
		if err := p.add(&p.rules[i], int(g.Rows), n); err != nil {
			return err
		}
		i++
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
	}
	if err := engine.Run(p, rows, c.Threads, c.Team); err != nil {
		return fmt.Errorf("goptim: %s: %w", p.rules[0].name(), err)
	}
	return p.log.err
}

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
	p.rows, p.now = nil, now{} // foreign addresses must not stay in a pool, which the garbage collector scans
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
