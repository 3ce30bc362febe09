package goptim

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"sync"
	"unsafe"

	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
	"github.com/goptim/goptim/goptim/internal/newtonschulz"
	"github.com/goptim/goptim/goptim/internal/safetensors"
	"github.com/goptim/goptim/internal/steps"
)

// MuonOptions are the hyperparameters of Muon.
type MuonOptions struct {
	LR             float64      `torch:"lr" default:"1e-3" range:"[0,inf]"`               // learning rate
	WeightDecay    float64      `torch:"weight_decay" range:"[0,inf]"`                    // multiplies the parameter by 1 - lr*weight_decay; torch's default is 0.1
	Momentum       float64      `torch:"momentum" default:"0.95" range:"[0,inf]"`         // decay of the momentum
	Nesterov       bool         `torch:"nesterov"`                                        // torch's default is true
	NSCoefficients [3]float64   `torch:"ns_coefficients" default:"3.4445 -4.7750 2.0315"` // of the quintic polynomial of Newton-Schulz
	Eps            float64      `torch:"eps" default:"1e-7" range:"[0,inf]"`              // smallest norm by which an update is divided
	NSSteps        int          `torch:"ns_steps" default:"5" range:"[0,100)"`            // number of Newton-Schulz iterations
	AdjustLR       LRAdjustment `torch:"adjust_lr_fn,null"`                               // factor of the learning rate by the shape of the matrix
}

var muonClass = class[MuonOptions]{
	name:      "Muon",
	uncounted: true,
	states:    []state{{key: "momentum_buffer"}},
	check: func(o *MuonOptions) error {
		return require(o.AdjustLR >= 0 && o.AdjustLR <= AdjustNone, "Muon", "AdjustLR", float64(o.AdjustLR), "one of the constants")
	},
}.described()

// The two halves of a step. The caller orthogonalizes the update between them.
var (
	_ = muonHalf("MuonMomentum", []string{"momentum", "nesterov"}, (*MuonOptions).momentumGroup)
	_ = muonHalf("MuonUpdate", []string{"lr", "weight_decay", "adjust_lr_fn"}, (*MuonOptions).updateGroup, "height", "width")
)

// An LRAdjustment selects a factor of Muon's learning rate that depends on the shape of a matrix of A rows and B columns.
type LRAdjustment int64

const (
	AdjustOriginal          LRAdjustment = iota // √max(1, A/B), by Jordan
	AdjustMatchRMSAdamW                         // 0.2·√max(A, B), by Moonshot: the update is as large as AdamW's
	AdjustSpectralUnclamped                     // √(A/B), by Bernstein
	AdjustNone                                  // 1
)

func (a LRAdjustment) ratio(rows, cols int) float64 {
	switch height, width := float64(rows), float64(cols); a {
	case AdjustOriginal:
		return math.Sqrt(max(1, height/width))
	case AdjustMatchRMSAdamW:
		return 0.2 * math.Sqrt(max(height, width))
	case AdjustSpectralUnclamped:
		return math.Sqrt(height / width)
	}
	return 1
}

// Muon is the optimizer of Jordan et al., "Muon: An optimizer for hidden layers in neural networks",
// https://kellerjordan.github.io/posts/muon, with the weight decay of Liu et al., "Muon is Scalable for LLM Training",
// arXiv:2502.16982. The update is the momentum, orthogonalized by Newton-Schulz iterations in bfloat16. The momentum and
// the step from a given update are bit-for-bit equal to torch.optim.Muon. The matrix products are summed in float32 in a
// different order, so updates agree with torch's as closely as two orders of summation in bfloat16 allow: within a few
// percent in norm. If the elements have 16 bits, the momentum and the update are computed in float32, and the update is rounded
// once, to bfloat16.
type Muon[T Element] struct {
	MuonOptions     // used by the next Step; may be changed between steps
	Storage         // used by the next Step; may be changed between steps
	Workers     int // maximum number of threads of a Step; 0 means GOMAXPROCS
	params      []*Param[T]
	states      []muonState
	first       int       // the index of the first parameter, among those of Groups
	update      []T       // of a matrix
	wide        []float32 // of a matrix of 16 bits
	workspace   newtonschulz.Workspace
	row         [1]engine.Row
	log         scalarLog
	context     stepContext
}

type muonState struct {
	step     float32 // only counted for stochastic rounding
	momentum stored
	extras
}

// NewMuon returns a new Muon for params. The Shape of each must have two dimensions: Muon is for weights of hidden
// layers. The error wraps ErrOption or ErrParam.
func NewMuon[T Element](params []*Param[T], o MuonOptions) (*Muon[T], error) {
	muonClass.setDefaults(&o)
	if err := muonClass.checkOptions(&o); err != nil {
		return nil, err
	}
	if err := checkParams("Muon", params); err != nil {
		return nil, err
	}
	m := &Muon[T]{MuonOptions: o, params: slices.Clone(params), states: make([]muonState, len(params))}
	for i, p := range params {
		if err := p.checkMatrix(i, len(p.Value)); err != nil {
			return nil, err
		}
		m.states[i].momentum = makeStored(dtype[T](), len(p.Value), 0)
	}
	return m, nil
}

// checkMatrix returns an error if the parameter is not a matrix or no longer has the given number of elements.
func (p *Param[T]) checkMatrix(i, elements int) error {
	m, err := p.matrices()
	switch {
	case err != nil:
	case m.batch != 1 || len(p.Shape) != 2:
		err = fmt.Errorf("shape %v, expected two dimensions of at least 1: %w", p.Shape, ErrParam)
	case len(p.Value) != elements:
		err = fmt.Errorf("%d elements, expected %d as at first: %w", len(p.Value), elements, ErrParam)
	case overlap(p.Value, p.Grad):
		return p.errOverlap("Muon", i)
	case p.Grad != nil && len(p.Grad) != len(p.Value):
		err = fmt.Errorf("the gradient has %d elements, expected %d: %w", len(p.Grad), len(p.Value), ErrParam)
	}
	if err != nil {
		return fmt.Errorf("goptim: Muon: %s: %w", p.describe(i), err)
	}
	return nil
}

// Check returns the error that Step would return for bad input.
func (m *Muon[T]) Check() error {
	err := errors.Join(muonClass.checkOptions(&m.MuonOptions), m.Storage.check("Muon"))
	for i, p := range m.params {
		err = errors.Join(err, p.checkMatrix(i, m.states[i].momentum.n))
	}
	if err != nil {
		return err
	}
	m.log.begin()
	m.row[0].Types = engine.TypesOf(dtype[T](), engine.None)
	for i, p := range m.params {
		if p.Grad != nil {
			m.context = stepContext{row: &m.row[0], i: i, log: &m.log}
			m.checkScalars(&m.context, p.Shape[0], p.Shape[1])
		}
	}
	if m.log.err != nil {
		return fmt.Errorf("goptim: Muon: %w", m.log.err)
	}
	return nil
}

// MarshalBinary encodes the options and the state. See Stateful.
func (m *Muon[T]) MarshalBinary() ([]byte, error) { return marshal(m) }

// UnmarshalBinary restores the options and the state. See Stateful.
func (m *Muon[T]) UnmarshalBinary(data []byte) error { return unmarshal(m, data) }

func (m *Muon[T]) groups() []group   { return []group{m} }
func (m *Muon[T]) usable() error     { return nil }
func (m *Muon[T]) className() string { return muonClass.name }
func (m *Muon[T]) options() []option {
	return append(muonClass.options(&m.MuonOptions), m.Storage.options()...)
}
func (m *Muon[T]) handles() []handle { return handlesOf(m.params) }
func (m *Muon[T]) ordered() bool     { return false }

// startAt sets the index of the first parameter, on which random numbers depend.
func (m *Muon[T]) startAt(first int) { m.first = first }

// Step updates each parameter that has a gradient. If the error wraps ErrOption or ErrParam, nothing has changed.
func (m *Muon[T]) Step() error {
	if err := m.Check(); err != nil {
		return err
	}
	threads := threadsOf(m.Workers)
	for i, p := range m.params {
		if p.Grad == nil {
			continue
		}
		rows, cols := p.Shape[0], p.Shape[1]
		m.fillRow(i)
		err := runMuon(m.momentumPass(m.row[:]), threads, nil)
		if err == nil {
			err = m.orthogonalize(rows, cols, threads)
		}
		if err == nil {
			err = runMuon(m.updatePass(m.row[:], rows, cols, m.Seed), threads, nil)
		}
		runtime.KeepAlive(m) // the row contains addresses
		if err != nil {
			return err
		}
	}
	return nil
}

// fillRow sets the row of a parameter, whose states are created or converted.
func (m *Muon[T]) fillRow(i int) {
	p, s, of := m.params[i], &m.states[i], dtype[T]()
	update, kind := m.updateOf(len(p.Value))
	s.momentum = s.momentum.as(m.stateType(of))
	flag, extra := m.flags(of)
	r := &m.row[0]
	*r = engine.Row{
		N:     int64(len(p.Value)),
		Types: engine.TypesOf(of, engine.Float32),
		Step:  engine.Address(unsafe.Pointer(&s.step)),
		Param: address(p.Value),
		Grad:  address(p.Grad),
		State: [engine.States]uintptr{s.momentum.address(), update},
	}
	r.StateType = [engine.States]engine.DType{s.momentum.d, kind}
	if r.Flags = flag; flag == engine.Stochastic {
		r.Rows = uint32(m.first + i)
	}
	if c := makeExtra(&s.extras, p.Value, flag, extra); c != nil {
		r.State[engine.MasterState], r.StateType[engine.MasterState] = c.address(), extra
	}
}

// updateOf returns memory for an update of n elements, and their type. That of a matrix of 16 bits is in float32.
func (m *Muon[T]) updateOf(n int) (uintptr, engine.DType) {
	m.row[0].Types = engine.TypesOf(dtype[T](), engine.None)
	if m.row[0].Narrow() {
		m.wide = slices.Grow(m.wide[:0], n)[:n]
		return address(m.wide), engine.Float32
	}
	m.update = slices.Grow(m.update[:0], n)[:n]
	return address(m.update), dtype[T]()
}

// orthogonalize replaces the update by an approximation of the nearest orthogonal matrix.
func (m *Muon[T]) orthogonalize(rows, cols, threads int) error {
	o := newtonschulz.Options{Coefficients: m.NSCoefficients, Eps: m.Eps, Steps: m.NSSteps}
	var err error
	switch dtype[T]() {
	case engine.Float32:
		err = newtonschulz.Orthogonalize(&m.workspace, viewed[float32](m.update), rows, cols, o, threads)
	case engine.Float64:
		err = newtonschulz.Orthogonalize(&m.workspace, viewed[float64](m.update), rows, cols, o, threads)
	default:
		err = newtonschulz.Orthogonalize(&m.workspace, m.wide, rows, cols, o, threads)
	}
	if err != nil {
		return fmt.Errorf("goptim: Muon: %w", err)
	}
	return nil
}

// viewed returns a slice as one of an element type of the same size.
func viewed[F Float, T Element](s []T) []F {
	return unsafe.Slice((*F)(unsafe.Pointer(unsafe.SliceData(s))), len(s))
}

// muonLayout is the layout of Muon's rows. The states are momentum_buffer and the update.
var muonLayout = func() engine.Layout {
	l := engine.LayoutOf(false, engine.Column, engine.Column)
	l.Narrow = true
	return l
}()

// muonHalf registers one half of a step with its options and its pass over the rows of a group, whose states are
// momentum_buffer and the update. It does not check the options.
func muonHalf(name string, options []string, pass func(o *MuonOptions, g *steps.Group, rows []engine.Row, extra []float64) muonPass, extra ...string) *steps.Kind {
	half := muonClass
	half.fields = nil
	for _, key := range options {
		half.fields = append(half.fields, *muonClass.field(key))
	}
	k := half.kind()
	k.States = append(k.States, steps.State{Key: "update", Given: true, Narrow: "bfloat16"}) // in which it is orthogonalized
	k.Narrow, k.Stored = true, true
	k.Name, k.Classes, k.Extra = name, map[string]map[string]float64{name: {}}, append(k.Extra, extra...)
	if slices.Contains(options, "adjust_lr_fn") {
		k.Names = map[string]map[string]float64{"adjust_lr_fn": {"": float64(AdjustOriginal)}}
		for i, name := range lrAdjustments {
			k.Names["adjust_lr_fn"][name] = float64(i)
		}
	}
	k.Step = func(c steps.Call) error {
		for g := c.Groups; g != nil; g = g.After() {
			rows, err := rowsOf(g, "Muon", muonLayout)
			if err != nil {
				return err
			}
			var o MuonOptions
			half.decode(&o, g.Words())
			if err := runMuon(pass(&o, g, rows, g.Words()[len(options):]), c.Threads, c.Team); err != nil {
				return err
			}
		}
		return nil
	}
	steps.Register(k)
	return k
}

// momentumGroup is the first half. It updates the momentum and writes the update, which the caller orthogonalizes.
func (o *MuonOptions) momentumGroup(_ *steps.Group, rows []engine.Row, _ []float64) muonPass {
	return o.momentumPass(rows)
}

// updateGroup is the second half. Its table is that of the first half, with orthogonalized updates. It applies the
// weight decay and the updates to the parameters, which all have the same shape.
func (o *MuonOptions) updateGroup(g *steps.Group, rows []engine.Row, shape []float64) muonPass {
	return o.updatePass(rows, int(shape[0]), int(shape[1]), g.Seed)
}

// checkScalars computes the scalars for a matrix and records their errors.
func (o *MuonOptions) checkScalars(c *stepContext, rows, cols int) {
	c.narrow(1 - o.Momentum)
	if o.Nesterov {
		c.narrow(o.Momentum)
	}
	c.narrow(-float64(o.LR * o.AdjustLR.ratio(rows, cols)))
}

func (o *MuonOptions) momentumPass(table []engine.Row) muonPass {
	p := muonPass{rows: table}
	for i := range p.momentum {
		p.momentum[i].Nesterov = kernel.Flag(o.Nesterov)
	}
	p.momentum[0].C, p.momentum[0].Momentum = kernel.WeightOf[float32](1-o.Momentum), kernel.WeightOf[float32](o.Momentum)
	p.momentum[1].C, p.momentum[1].Momentum = kernel.WeightOf[float64](1-o.Momentum), kernel.WeightOf[float64](o.Momentum)
	return p
}

// updatePass counts the steps of rows that are rounded with random numbers.
func (o *MuonOptions) updatePass(table []engine.Row, rows, cols int, seed uint64) muonPass {
	var noise []kernel.Noise
	for i := range table {
		if r := &table[i]; r.Flags&engine.Stochastic != 0 {
			if noise == nil {
				noise = make([]kernel.Noise, len(table))
			}
			noise[i] = r.Noise(seed, r.Tick())
		}
	}
	return muonPass{
		noise:  noise,
		second: true,
		rows:   table,
		update: kernel.MuonUpdate{
			Decay: 1 - float64(o.LR*o.WeightDecay),
			Step:  -float64(o.LR * o.AdjustLR.ratio(rows, cols)),
		},
	}
}

// A muonPass is one of the two halves of a step: before or after the update is orthogonalized.
type muonPass struct {
	rows     []engine.Row
	momentum [2]kernel.MuonMomentum // for float32 and for float64
	second   bool                   // whether this is the second half
	update   kernel.MuonUpdate
	noise    []kernel.Noise // of each row, or nil
}

var muonPasses = sync.Pool{New: func() any { return new(muonPass) }}

func runMuon(pass muonPass, threads int, team engine.Team) error {
	p := muonPasses.Get().(*muonPass)
	defer func() {
		*p = muonPass{} // foreign addresses must not stay in a pool, which the garbage collector scans
		muonPasses.Put(p)
	}()
	*p = pass
	if err := engine.Run(p, p.rows, threads, team); err != nil {
		return fmt.Errorf("goptim: Muon: %w", err)
	}
	return nil
}

// Update implements engine.Pass.
func (p *muonPass) Update(part engine.Part) {
	for row := part.First; row <= part.Last; row++ {
		r := &p.rows[row]
		lo, hi := part.Of(row, int(r.N))
		if r.Mixed(&muonLayout) {
			o := engine.Operands(r, &muonLayout, lo)
			if p.second {
				o.Grad, o.State = o.State[1], [4]kernel.Operand{}
				if p.noise != nil {
					o.Noise = p.noise[row]
				}
				kernel.ApplyMixed(f32.MuonUpdate, &p.update, &o, hi-lo)
			} else {
				o = kernel.Operands{Param: o.State[1], Grad: o.Grad, State: [4]kernel.Operand{o.State[0]}}
				kernel.ApplyMixed(f32.MuonMomentum, &p.momentum[0], &o, hi-lo)
			}
		} else if r.DType() == engine.Float32 {
			param, grad, states := engine.View[float32](r, &muonLayout, lo, hi)
			if p.second {
				kernel.Apply(f32.MuonUpdate, &p.update, param, states[1], [4][]float32{})
			} else {
				kernel.Apply(f32.MuonMomentum, &p.momentum[0], states[1], grad, [4][]float32{states[0]})
			}
		} else {
			param, grad, states := engine.View[float64](r, &muonLayout, lo, hi)
			if p.second {
				kernel.Apply(f64.MuonUpdate, &p.update, param, states[1], [4][]float64{})
			} else {
				kernel.Apply(f64.MuonMomentum, &p.momentum[1], states[1], grad, [4][]float64{states[0]})
			}
		}
	}
}

// lrAdjustments are torch's names of the adjustments. None in torch is the first. AdjustNone, the last, does not exist in
// torch.
var lrAdjustments = [...]string{"original", "match_rms_adamw", "spectral_unclamped", "none"}

func (a LRAdjustment) String() string {
	if a < 0 || a > AdjustNone {
		return fmt.Sprintf("LRAdjustment(%d)", int64(a))
	}
	return lrAdjustments[a]
}

// MarshalText returns the name of the adjustment in torch.
func (a LRAdjustment) MarshalText() ([]byte, error) {
	if a < 0 || a > AdjustNone {
		return nil, fmt.Errorf("goptim: %v: %w", a, ErrOption)
	}
	return []byte(a.String()), nil
}

// UnmarshalText accepts the names that MarshalText returns.
func (a *LRAdjustment) UnmarshalText(text []byte) error {
	i := slices.Index(lrAdjustments[:], string(text))
	if i < 0 {
		return fmt.Errorf("goptim: %q, expected one of %q: %w", text, lrAdjustments, ErrOption)
	}
	*a = LRAdjustment(i)
	return nil
}

func (m *Muon[T]) tensors(param int) (all []safetensors.Tensor) {
	s, shape := &m.states[param], m.params[param].shape()
	if flag, _ := m.flags(dtype[T]()); flag == engine.Stochastic {
		all = append(all, scalarOf("step", s.step))
	}
	return append(append(all, s.extras.tensors(shape)...), s.momentum.tensor("momentum_buffer", shape))
}

func (m *Muon[T]) load(saved *savedGroup) (func(), error) {
	o, err := muonClass.load(saved, m.MuonOptions)
	if err == nil {
		err = muonClass.checkOptions(o)
	}
	storage, stored, wrong := m.Storage.load(saved)
	if err = errors.Join(err, wrong); err != nil {
		return nil, err
	}
	types, states := typesOf[T](stored), make([]muonState, len(m.params))
	for i, p := range m.params {
		s, to := &saved.states[i], &states[i]
		if s.empty() {
			to.momentum = makeStored(types[0], len(p.Value), 0)
			continue
		}
		if stored {
			to.extras.load(s, len(p.Value), types[0])
			if s.has("step") {
				to.step = s.single("step", s.count("step"))
			}
		}
		to.momentum = s.stored("momentum_buffer", len(p.Value), types...)
		if err := s.end(); err != nil {
			return nil, err
		}
	}
	return func() { m.MuonOptions, m.states, m.Storage = *o, states, storage }, nil
}
