package goptim

import (
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"

	"github.com/goptim/goptim/goptim/internal/cpow"
	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
	"github.com/goptim/goptim/goptim/internal/safetensors"
)

// LookaheadOptions are the hyperparameters of Lookahead.
type LookaheadOptions struct {
	Alpha float64 `torch:"lookahead_alpha" default:"0.5" range:"[0,1]"` // share of the way from the slow values to the parameters
	K     int     `torch:"lookahead_k" default:"6" range:"[1,inf]"`     // number of steps between two updates of the slow values
	Steps int     `torch:"lookahead_step" range:"[0,inf]"`              // number of steps so far
}

type slowOptions struct {
	Alpha float64 `torch:"lookahead_alpha"`
}

const slowKey = "lookahead_slow_buff"

var (
	lookaheadClass = class[LookaheadOptions]{name: "Lookahead"}.described()

	// slow moves the slow values and copies them to the parameters.
	slow = elementwiseSpec(class[slowOptions]{
		name: "Lookahead", uncounted: true,
		states: []state{{key: slowKey, copied: true}},
	}, func(o *slowOptions, c *stepContext) kernel.Lookahead {
		return kernel.Lookahead{Alpha: c.narrow(o.Alpha)}
	}, f32.Lookahead, f64.Lookahead)
)

// Lookahead is the method of Zhang, Lucas, Hinton & Ba, "Lookahead Optimizer: k steps forward, 1 step back", arXiv:1907.08610,
// Algorithm 1, around another optimizer. After every K steps of it, slow values move towards the parameters, and replace them.
// Results are bit-for-bit equal to timm.optim.Lookahead.
type Lookahead struct {
	LookaheadOptions     // used by the next Step; may be changed between steps
	Workers          int // maximum number of threads that update the slow values; 0 means GOMAXPROCS

	base Optimizer
	all  []wrapped
	slow []stored // of each parameter; none before the first update
}

// NewLookahead returns a new Lookahead around an optimizer of parameters with dense gradients, which may be Groups. Its Step replaces
// that of the optimizer. The error wraps ErrOption or ErrParam.
func NewLookahead(base Optimizer, o LookaheadOptions) (*Lookahead, error) {
	lookaheadClass.setDefaults(&o)
	if err := lookaheadClass.checkOptions(&o); err != nil {
		return nil, err
	}
	all, err := wrappedOf("Lookahead", base)
	if err != nil {
		return nil, err
	}
	return &Lookahead{LookaheadOptions: o, base: base, all: all, slow: make([]stored, len(all))}, nil
}

// Base returns the optimizer that NewLookahead was given.
func (l *Lookahead) Base() Optimizer { return l.base }

// Check returns the error that Step would return for bad input.
func (l *Lookahead) Check() error {
	if err := checkSelf(l.base != nil); err != nil {
		return err
	}
	err := lookaheadClass.checkOptions(&l.LookaheadOptions)
	for i, p := range l.all {
		if n := p.elements(); l.slow[i].made() && l.slow[i].n != n {
			err = errors.Join(err, fmt.Errorf("goptim: Lookahead: parameter %d has %d elements, expected %d as before: %w", i, n, l.slow[i].n, ErrParam))
		}
	}
	return errors.Join(err, l.checkStorage(), l.base.Check())
}

// checkStorage returns an error for states that contain a parameter, since the next step would undo an update of the slow values.
func (l *Lookahead) checkStorage() (err error) {
	at := 0
	for i, g := range l.base.groups() {
		s, ok := g.(interface {
			flags(of engine.DType) (engine.Flags, engine.DType)
		})
		for range g.handles() {
			if ok {
				if flag, _ := s.flags(l.all[at].dtype()); flag&(engine.Master|engine.Kahan) != 0 {
					return fmt.Errorf("goptim: Lookahead: group %d has MasterWeights or RoundKahan, expected neither: %w", i, ErrOption)
				}
			}
			at++
		}
	}
	return nil
}

// Step is a step of the optimizer. Every K-th one then updates the slow values of each parameter that has a gradient. If the
// error wraps ErrOption or ErrParam, nothing has changed.
func (l *Lookahead) Step() error {
	if err := l.Check(); err != nil {
		return err
	}
	if err := l.base.Step(); err != nil {
		return err
	}
	if l.Steps++; l.Steps%l.K != 0 {
		return nil
	}
	return l.Sync()
}

// Sync updates the slow values now, whatever the number of steps: for example after the last one.
func (l *Lookahead) Sync() error {
	rows := make([]engine.Row, 0, len(l.all))
	for i, p := range l.all {
		if !p.hasGrad() {
			continue
		}
		if !l.slow[i].made() {
			l.slow[i] = p.copied()
		}
		rows = append(rows, p.row(&l.slow[i]))
	}
	return runWrapped(slow, slowOptions{l.Alpha}, rows, l.Workers, l)
}

// MarshalBinary encodes the options and the state, with those of the optimizer. See Stateful.
func (l *Lookahead) MarshalBinary() ([]byte, error) { return marshal(l) }

// UnmarshalBinary restores the options and the state, with those of the optimizer. See Stateful.
func (l *Lookahead) UnmarshalBinary(data []byte) error { return unmarshal(l, data) }

func (l *Lookahead) groups() []group {
	var all []group
	first := 0
	for _, g := range l.base.groups() {
		all = append(all, &slowGroup{g, l, first})
		first += len(g.handles())
	}
	return all
}

// A slowGroup is a group of the optimizer with the options and the states of Lookahead, as in torch.
type slowGroup struct {
	group
	l     *Lookahead
	first int // the index of its first parameter
}

func (g *slowGroup) options() []option {
	return append(g.group.options(), lookaheadClass.options(&g.l.LookaheadOptions)...)
}

func (g *slowGroup) tensors(param int) []safetensors.Tensor {
	all := g.group.tensors(param)
	if s := &g.l.slow[g.first+param]; s.made() {
		all = append(all, s.tensor(slowKey, g.l.all[g.first+param].shape()))
	}
	return all
}

func (g *slowGroup) load(saved *savedGroup) (func(), error) {
	o, states := g.l.LookaheadOptions, make([]stored, len(saved.states))
	if err := saved.decode(lookaheadClass.options(&o)); err != nil {
		return nil, err
	}
	if err := lookaheadClass.checkOptions(&o); err != nil {
		return nil, err
	}
	inner := *saved
	inner.options = map[string]json.RawMessage{}
	for key, value := range saved.options {
		if !slices.ContainsFunc(lookaheadClass.fields, func(f field) bool { return f.key == key }) {
			inner.options[key] = value
		}
	}
	for i := range saved.states {
		p := g.l.all[g.first+i]
		if s := &saved.states[i]; s.has(slowKey) {
			states[i] = s.stored(slowKey, p.elements(), p.dtype())
			if s.err != nil {
				return nil, s.err
			}
		}
	}
	commit, err := g.group.load(&inner)
	if err != nil {
		return nil, err
	}
	return func() {
		commit()
		g.l.LookaheadOptions = o
		copy(g.l.slow[g.first:], states)
	}, nil
}

// wrapped is a parameter of any element type.
type wrapped interface {
	hasGrad() bool
	elements() int
	dtype() engine.DType
	shape() []int
	copied() stored
	copyFrom(s *stored)
	row(state *stored) engine.Row
	gradRow() engine.Row
	weightedRow() (engine.Row, any) // a row of |value|*gradient, and its memory
}

func (p *Param[T]) hasGrad() bool       { return p.Grad != nil }
func (p *Param[T]) elements() int       { return len(p.Value) }
func (p *Param[T]) dtype() engine.DType { return dtype[T]() }
func (p *Param[T]) copied() stored      { return storedCopy(p.Value) }
func (p *Param[T]) copyFrom(s *stored)  { copy(p.Value, view[T](s)) }

// row returns a row with the parameter, its gradient and a state.
func (p *Param[T]) row(s *stored) engine.Row {
	r := engine.Row{
		N: int64(len(p.Value)), Types: engine.TypesOf(dtype[T](), engine.None), Param: address(p.Value), Grad: address(p.Grad),
	}
	r.State[0], r.StateType[0] = s.address(), s.d
	return r
}

// wrappedOf returns the parameters of an optimizer, in the order of its groups.
func wrappedOf(name string, base Optimizer) ([]wrapped, error) {
	if isNil(base) {
		return nil, fmt.Errorf("goptim: %s: the optimizer is nil: %w", name, ErrParam)
	}
	groups, err := groupsOf([]Optimizer{base})
	if err != nil {
		return nil, fmt.Errorf("goptim: %s: %w", name, err)
	}
	var all []wrapped
	for i, g := range groups {
		for k, h := range g.handles() {
			p, ok := h.pointer.(wrapped)
			if !ok {
				return nil, fmt.Errorf("goptim: %s: parameter %d of group %d has sparse gradients, expected dense ones: %w", name, k, i, ErrParam)
			}
			all = append(all, p)
		}
	}
	return all, nil
}

// runWrapped applies an elementwise operation to rows of several element types.
func runWrapped[O, S any](s *spec[O, S], o O, rows []engine.Row, workers int, owner any) error {
	if len(rows) == 0 {
		return nil
	}
	var pass pass[S]
	pass.begin(s.arithmetic, rows)
	err := pass.add(&bound[O, S]{s, &o}, len(rows), stepContext{pow: cpow.Pow})
	if err == nil {
		err = engine.Run(&pass, rows, threadsOf(workers), nil)
	}
	runtime.KeepAlive(owner) // the rows contain addresses
	if err != nil {
		return fmt.Errorf("goptim: %s: %w", s.name, err)
	}
	return nil
}
