package goptim

import (
	"fmt"
	"sync"

	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/goptim/internal/kernel"
)

// A rule is what optimizers differ in that treat every element alike; their options are one. S is the scalars that
// their kernel takes.
type rule[S any] interface {
	name() string
	check() error
	columns() int // how many states a parameter has
	counts() bool // whether the scalars depend on the number of steps
	// scalars are those of step t, computed in float64 in torch's order.
	scalars(t float64, pow func(x, y float64) float64) S
	// update runs the kernel over elements lo to hi of a row.
	update(h *S, r *engine.Row, lo, hi int)
}

// A pass is one step of a rule over rows, with the scalars of every step count among them.
type pass[S any] struct {
	rule[S]
	rows     []engine.Row
	distinct []S
	at       []int // the index of a row's scalars
}

func (p *pass[S]) begin(r rule[S], rows []engine.Row, pow func(x, y float64) float64) {
	p.rule, p.rows, p.distinct, p.at = r, rows, p.distinct[:0], p.at[:0]
	counts, t, last := r.counts(), 0., 0.
	for i := range rows {
		if counts {
			t = rows[i].Tick()
		}
		if i == 0 || t != last {
			p.distinct = append(p.distinct, r.scalars(t, pow))
			last = t
		}
		p.at = append(p.at, len(p.distinct)-1)
	}
}

// Update implements engine.Pass.
func (p *pass[S]) Update(row, lo, hi int) {
	p.update(&p.distinct[p.at[row]], &p.rows[row], lo, hi)
	kernel.Leave()
}

// stepTable runs one step of a rule over a table, with a pass from the rule's pool.
func stepTable[S any](r rule[S], passes *sync.Pool, t Table) error {
	rows, err := t.rows(r.name(), r.columns(), r.counts())
	if err != nil {
		return err
	}
	p, _ := passes.Get().(*pass[S])
	if p == nil {
		p = new(pass[S])
	}
	defer passes.Put(p)
	p.begin(r, rows, t.pow())
	if err := engine.Run(p, rows, t.Threads); err != nil {
		return fmt.Errorf("goptim: %s: %w", r.name(), err)
	}
	return nil
}
