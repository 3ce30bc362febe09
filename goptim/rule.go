package goptim

import (
	"fmt"
	"math"
	"slices"
	"sync"

	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/goptim/internal/kernel"
)

// A rule is what optimizers differ in that treat every element alike; their options are one. S is the scalars that
// their kernel takes.
type rule[S any] interface {
	name() string
	check() error
	layout() engine.Layout
	// initial is the value of a new state.
	initial(state int) float64
	// scalars are computed in float64 in torch's order, by the methods of now where Python or torch may raise an
	// exception. They depend on the row by its Kind and by its scalar states, which scalars updates.
	scalars(n *now) S
	kernels() kernels[S]
	// options and keys are what torch calls options and states.
	options() []option
	keys() [engine.States]stateKey
}

// now is what a row's scalars are computed from, beside the options.
type now struct {
	row  *engine.Row
	i    int // the row's index
	log  *scalarLog
	t    float64 // the step's number, from 1; 0 if the layout does not count
	pow  func(x, y float64) float64
	wide bool // see Table.Float64
}

// kernels are one step's arithmetic for either type of elements.
type kernels[S any] struct {
	f32 kernel.Func[S, float32]
	f64 kernel.Func[S, float64]
}

// A pass is one step of rules of one kind over rows, with the distinct scalars among them.
type pass[S any] struct {
	kernels  kernels[S]
	rows     []engine.Row
	distinct []terms[S]
	at       []int // the index of a row's terms
	log      scalarLog
	now      now          // the row whose scalars are computed
	joined   []engine.Row // of several tables
	added    []addition[S]
	turn     turn
}

// An addition is the rows of one group, up to end.
type addition[S any] struct {
	rule rule[S]
	now  now
	end  int
}

// A turn is the row of a pass whose scalar states change next, where they change in the order of the rows.
type turn struct {
	waiting       bool // scalar states have yet to change
	row, log, add int  // indices of the row, of its first entry in the log, and of its addition
}

// terms are what rows of one group share.
type terms[S any] struct {
	scalars S
	layout  engine.Layout
}

func (p *pass[S]) begin(k kernels[S], rows []engine.Row) {
	p.kernels, p.rows, p.distinct, p.at = k, rows, p.distinct[:0], p.at[:0]
	p.added, p.turn = p.added[:0], turn{}
	p.log.begin()
}

// add computes the scalars of the next rows, which are one group's. It counts the step, and updates scalar states, which
// restore undoes until there is a commit.
func (p *pass[S]) add(r rule[S], count int, n now) error {
	layout := r.layout()
	shared := !slices.Contains(layout.State[:], engine.Number)
	last := math.NaN()
	first := len(p.at)
	n.log = &p.log
	p.now = n
	for i := first; i < first+count; i++ {
		row := &p.rows[i]
		p.now.row, p.now.i = row, i
		if layout.Counts {
			p.now.t = p.log.tick(p.rows, i)
		}
		if !shared || i == first || p.now.t != last || row.Kind != p.rows[i-1].Kind {
			p.distinct = append(p.distinct, terms[S]{r.scalars(&p.now), layout})
			last = p.now.t
		}
		if p.log.err != nil {
			return fmt.Errorf("goptim: %s: %w", r.name(), p.log.err)
		}
		p.at = append(p.at, len(p.distinct)-1)
	}
	p.added = append(p.added, addition[S]{r, n, len(p.at)})
	return nil
}

func (p *pass[S]) commit() { p.log.undo = p.log.undo[:0] }

func (p *pass[S]) restore() { p.log.restore(p.rows) }

// postpone restores what the rows had before the step. Their scalar states change in their turn: one may be memory that
// an earlier row reads or writes.
func (p *pass[S]) postpone() {
	undo := p.log.undo
	p.log.restore(p.rows)
	p.log.undo = undo
	p.turn = turn{waiting: true}
}

// Prepare implements engine.Preparer.
func (p *pass[S]) Prepare() {
	if !p.turn.waiting {
		return
	}
	for i := range p.log.undo {
		o := &p.log.undo[i]
		o.set(p.rows, o.after)
	}
	p.turn.waiting = false
}

// take changes the scalar states of the row whose turn it is, and reports whether it can be updated. Its scalars are as
// they have been computed, unless an earlier row has changed what they are computed from.
func (p *pass[S]) take() bool {
	t := &p.turn
	first := t.log
	same := true
	for ; t.log < len(p.log.undo) && p.log.undo[t.log].row == t.row; t.log++ {
		o := &p.log.undo[t.log]
		same = same && o.get(p.rows) == o.before
	}
	for i := first; same && i < t.log; i++ {
		o := &p.log.undo[i]
		o.set(p.rows, o.after)
	}
	if !same {
		p.compute(t.row)
	}
	t.row++
	return p.log.err == nil
}

// compute computes the scalars of a row again.
func (p *pass[S]) compute(i int) {
	for p.added[p.turn.add].end <= i {
		p.turn.add++
	}
	a := &p.added[p.turn.add]
	log := scalarLog{}
	p.now = a.now
	p.now.row, p.now.i, p.now.log = &p.rows[i], i, &log
	layout := a.rule.layout()
	if layout.Counts {
		p.now.t = p.rows[i].Tick()
	}
	p.at[i] = len(p.distinct)
	p.distinct = append(p.distinct, terms[S]{a.rule.scalars(&p.now), layout})
	if log.err != nil {
		p.log.err = fmt.Errorf("goptim: %s: after the rows before it were stepped: %w", a.rule.name(), log.err)
	}
}

// Update implements engine.Pass.
func (p *pass[S]) Update(part engine.Part) {
	for row := part.First; row <= part.Last; row++ {
		if p.turn.waiting && row == p.turn.row && !p.take() {
			return
		}
		r := &p.rows[row]
		if next := row + ahead; next <= part.Last {
			p.rows[next].Prefetch()
		}
		lo, hi := part.Of(row, int(r.N))
		if lo == hi {
			continue
		}
		t := &p.distinct[p.at[row]]
		if r.DType() == engine.Float32 {
			param, grad, states := engine.View[float32](r, t.layout, lo, hi)
			kernel.Apply(p.kernels.f32, &t.scalars, param, grad, states)
		} else {
			param, grad, states := engine.View[float64](r, t.layout, lo, hi)
			kernel.Apply(p.kernels.f64, &t.scalars, param, grad, states)
		}
	}
}

// ahead is how many rows before their turn small ones are asked for.
const ahead = 2

// stepTables runs one step over tables, each by its own rule, with a pass from the rules' pool.
func stepTables[S, O any, R interface {
	*O
	rule[S]
}](passes *sync.Pool, options []O, tables []Table) error {
	if len(options) != len(tables) {
		return fmt.Errorf("goptim: options of %d tables, expected %d: %w", len(options), len(tables), ErrOption)
	}
	if len(tables) == 0 {
		return nil
	}
	p, _ := passes.Get().(*pass[S])
	if p == nil {
		p = new(pass[S])
	}
	defer func() {
		p.restore()
		clear(p.added)
		p.rows, p.now = nil, now{} // memory that is not Go's has no place in a pool, where Go's collector would look at it
		passes.Put(p)
	}()
	rows, err := tables[0].rows(R(&options[0]).name(), R(&options[0]).layout())
	if len(tables) > 1 && err == nil {
		rows, err = p.join(tables, func(i int) rule[S] { return R(&options[i]) })
	}
	if err != nil {
		return err
	}
	p.begin(R(&options[0]).kernels(), rows)
	for i, t := range tables {
		if err := p.add(R(&options[i]), t.Rows, now{pow: t.pow(), wide: t.Float64}); err != nil {
			return err
		}
	}
	if tables[0].OnlyCheck {
		return nil
	}
	p.postpone()
	err = engine.Run(p, rows, tables[0].Threads, tables[0].Team)
	p.commit()
	if err != nil {
		return fmt.Errorf("goptim: %s: %w", R(&options[0]).name(), err)
	}
	return p.log.err
}

// join copies the rows of tables, one behind the other.
func (p *pass[S]) join(tables []Table, of func(table int) rule[S]) ([]engine.Row, error) {
	p.joined = p.joined[:0]
	for i, t := range tables {
		rows, err := t.rows(of(i).name(), of(i).layout())
		if err != nil {
			return nil, fmt.Errorf("table %d: %w", i, err)
		}
		p.joined = append(p.joined, rows...)
	}
	return p.joined, nil
}
