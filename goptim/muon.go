package goptim

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"sync"

	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
	"github.com/goptim/goptim/goptim/internal/safetensors"
	"github.com/goptim/goptim/internal/steps"
)

// MuonOptions are the hyperparameters of Muon.
type MuonOptions struct {
	LR             float64      `torch:"lr" default:"1e-3" range:"[0,inf]"`               // learning rate
	WeightDecay    float64      `torch:"weight_decay" range:"[0,inf]"`                    // shrinks the parameter itself; torch's default is 0.1
	Momentum       float64      `torch:"momentum" default:"0.95" range:"[0,inf]"`         // decay of the momentum
	Nesterov       bool         `torch:"nesterov"`                                        // torch's default is true
	NSCoefficients [3]float64   `torch:"ns_coefficients" default:"3.4445 -4.7750 2.0315"` // of the quintic polynomial
	Eps            float64      `torch:"eps" default:"1e-7" range:"[0,inf]"`              // the least norm that an update is divided by
	NSSteps        int          `torch:"ns_steps" default:"5" range:"[0,100)"`            // of Newton-Schulz
	AdjustLR       LRAdjustment `torch:"adjust_lr_fn,null"`                               // to the shape of a matrix
}

var muonClass = class[MuonOptions]{
	name:      "Muon",
	uncounted: true,
	states:    []state{{key: "momentum_buffer"}},
	check: func(o *MuonOptions) error {
		return require(o.AdjustLR >= 0 && o.AdjustLR <= AdjustNone, "Muon", "AdjustLR", float64(o.AdjustLR), "one of the constants")
	},
}.described()

// The halves of a step, between which the update is made orthogonal.
var (
	_ = muonHalf("MuonMomentum", []string{"momentum", "nesterov"}, (*MuonOptions).towardGroup)
	_ = muonHalf("MuonUpdate", []string{"lr", "weight_decay", "adjust_lr_fn"}, (*MuonOptions).movementGroup, "height", "width")
)

// An LRAdjustment is a factor of Muon's learning rate, by the shape of a matrix of A rows and B columns.
type LRAdjustment int64

const (
	AdjustOriginal          LRAdjustment = iota // √max(1, A/B): Jordan's
	AdjustMatchRMSAdamW                         // 0.2·√max(A, B): Moonshot's, as large an update as AdamW's
	AdjustSpectralUnclamped                     // √(A/B): Bernstein's
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
// arXiv:2502.16982: momentum, made orthogonal by Newton-Schulz iterations in bfloat16. Momentum and the movement of the
// parameter have torch.optim.Muon's bits; the matrix products are summed in an order of their own, in float32, so that
// updates agree with torch's as closely as two orders of summation in bfloat16 do: in norm, to some percent.
type Muon[T Float] struct {
	MuonOptions     // as the next Step uses them
	Workers     int // as many threads as a Step may use; 0 means GOMAXPROCS
	params      []*Param[T]
	momenta     [][]T
	update      []T
	schulz      newtonSchulz
	row         [1]engine.Row
	log         scalarLog
	now         now
}

// NewMuon makes a Muon of params, each a matrix by its Shape of two dimensions: a hidden layer's weight. The error wraps
// ErrOption or ErrParam.
func NewMuon[T Float](params []*Param[T], o MuonOptions) (*Muon[T], error) {
	muonClass.setDefaults(&o)
	if err := muonClass.checkOptions(&o); err != nil {
		return nil, err
	}
	if err := checkParams("Muon", params); err != nil {
		return nil, err
	}
	m := &Muon[T]{MuonOptions: o, params: slices.Clone(params), momenta: make([][]T, len(params))}
	for i, p := range params {
		if err := p.checkMatrix(i, len(p.Value)); err != nil {
			return nil, err
		}
		m.momenta[i] = make([]T, len(p.Value))
	}
	return m, nil
}

// checkMatrix reports what is wrong with a parameter that had a number of elements at first.
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

// Check reports what Step would refuse now.
func (m *Muon[T]) Check() error {
	err := muonClass.checkOptions(&m.MuonOptions)
	for i, p := range m.params {
		err = errors.Join(err, p.checkMatrix(i, len(m.momenta[i])))
	}
	if err != nil {
		return err
	}
	m.log.begin()
	m.row[0].Kind = engine.KindOf(dtype[T](), engine.None)
	for i, p := range m.params {
		if p.Grad != nil {
			m.now = now{row: &m.row[0], i: i, log: &m.log}
			m.checkScalars(&m.now, p.Shape[0], p.Shape[1])
		}
	}
	if m.log.err != nil {
		return fmt.Errorf("goptim: Muon: %w", m.log.err)
	}
	return nil
}

// MarshalBinary encodes options and state: see Stateful.
func (m *Muon[T]) MarshalBinary() ([]byte, error) { return marshal(m) }

// UnmarshalBinary takes options and state: see Stateful.
func (m *Muon[T]) UnmarshalBinary(data []byte) error { return unmarshal(m, data) }

func (m *Muon[T]) groups() []group   { return []group{m} }
func (m *Muon[T]) usable() error     { return nil }
func (m *Muon[T]) className() string { return muonClass.name }
func (m *Muon[T]) options() []option { return muonClass.options(&m.MuonOptions) }
func (m *Muon[T]) handles() []handle { return handlesOf(m.params) }
func (m *Muon[T]) ordered() bool     { return false }

// Step updates every parameter that has a gradient. On an error that wraps ErrOption or ErrParam nothing has changed.
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
		m.update = sized(m.update, len(p.Value))
		m.row[0] = engine.Row{
			N:     int64(len(p.Value)),
			Kind:  engine.KindOf(dtype[T](), engine.None),
			Param: address(p.Value),
			Grad:  address(p.Grad),
			State: [engine.States]uintptr{address(m.momenta[i]), address(m.update)},
		}
		err := runMuon(m.toward(m.row[:]), threads, nil)
		if err == nil {
			err = orthogonalize(&m.schulz, m.update, rows, cols, &m.MuonOptions, threads)
		}
		if err == nil {
			err = runMuon(m.movement(m.row[:], rows, cols), threads, nil)
		}
		runtime.KeepAlive(m) // the row holds addresses
		if err != nil {
			return err
		}
	}
	return nil
}

// muonLayout is the layout of Muon's rows: momentum_buffer, and the update.
var muonLayout = engine.Layout{State: [engine.States]engine.Use{engine.Column, engine.Column}}

// muonHalf registers a half of a step: its options, and what it does with a group whose states are momentum_buffer and
// the update. It takes the options unchecked.
func muonHalf(name string, options []string, pass func(o *MuonOptions, rows []engine.Row, extra []float64) muonPass, extra ...string) *steps.Kind {
	half := muonClass
	half.fields = nil
	for _, key := range options {
		half.fields = append(half.fields, *muonClass.field(key))
	}
	k := half.kind()
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
			if err := runMuon(pass(&o, rows, g.Words()[len(options):]), c.Threads, c.Team); err != nil {
				return err
			}
		}
		return nil
	}
	steps.Register(k)
	return k
}

// towardGroup is the first half: momentum moves, and the update is written, for the caller to make orthogonal.
func (o *MuonOptions) towardGroup(rows []engine.Row, _ []float64) muonPass { return o.toward(rows) }

// movementGroup is the second half, of the table of the first, whose updates are orthogonal now: parameters, all of one
// shape, decay, and move by their updates.
func (o *MuonOptions) movementGroup(rows []engine.Row, shape []float64) muonPass {
	return o.movement(rows, int(shape[0]), int(shape[1]))
}

// checkScalars computes the scalars of a matrix for their errors.
func (o *MuonOptions) checkScalars(n *now, rows, cols int) {
	n.narrow(1 - o.Momentum)
	if o.Nesterov {
		n.narrow(o.Momentum)
	}
	n.narrow(-float64(o.LR * o.AdjustLR.ratio(rows, cols)))
}

func (o *MuonOptions) toward(table []engine.Row) muonPass {
	p := muonPass{rows: table}
	for i := range p.momentum {
		p.momentum[i].Nesterov = kernel.Flag(o.Nesterov)
	}
	p.momentum[0].C, p.momentum[0].Momentum = kernel.WeightOf[float32](1-o.Momentum), kernel.WeightOf[float32](o.Momentum)
	p.momentum[1].C, p.momentum[1].Momentum = kernel.WeightOf[float64](1-o.Momentum), kernel.WeightOf[float64](o.Momentum)
	return p
}

func (o *MuonOptions) movement(table []engine.Row, rows, cols int) muonPass {
	return muonPass{
		moves: true,
		rows:  table,
		movement: kernel.MuonUpdate{
			Decay: 1 - float64(o.LR*o.WeightDecay),
			Step:  -float64(o.LR * o.AdjustLR.ratio(rows, cols)),
		},
	}
}

// A muonPass is one of the two halves of a step, before and after the update is made orthogonal.
type muonPass struct {
	rows     []engine.Row
	momentum [2]kernel.MuonMomentum // for float32 and for float64
	moves    bool                   // it is the second half
	movement kernel.MuonUpdate
}

var muonPasses = sync.Pool{New: func() any { return new(muonPass) }}

func runMuon(pass muonPass, threads int, team engine.Team) error {
	p := muonPasses.Get().(*muonPass)
	defer func() {
		*p = muonPass{} // see stepTables
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
		if r.DType() == engine.Float32 {
			param, grad, states := engine.View[float32](r, muonLayout, lo, hi)
			if p.moves {
				kernel.Apply(f32.MuonUpdate, &p.movement, param, states[1], [3][]float32{})
			} else {
				kernel.Apply(f32.MuonMomentum, &p.momentum[0], states[1], grad, [3][]float32{states[0]})
			}
		} else {
			param, grad, states := engine.View[float64](r, muonLayout, lo, hi)
			if p.moves {
				kernel.Apply(f64.MuonUpdate, &p.movement, param, states[1], [3][]float64{})
			} else {
				kernel.Apply(f64.MuonMomentum, &p.momentum[1], states[1], grad, [3][]float64{states[0]})
			}
		}
	}
}

// bfloat16 rounds to the nearest bfloat16, ties to even: to the upper half of a float32.
func bfloat16(x float32) float32 {
	bits := math.Float32bits(x)
	if bits&0x7fffffff > 0x7f800000 {
		return x // NaN, which rounding could turn into another thing
	}
	return math.Float32frombits((bits + 0x7fff + bits>>16&1) &^ 0xffff)
}

// A newtonSchulz makes matrices orthogonal, nearly: it moves all their singular values toward 1. Its memory is kept for the
// next one. Matrices are float32 whose values are bfloat16's.
type newtonSchulz struct {
	x, next, transposed, gram, square []float32
	product                           product
}

// orthogonalize rounds a matrix X to bfloat16, with at most as many rows as columns or else transposed, and replaces it by
// X/‖X‖ and then as often as the options say by aX + (bA + cA²)X, where A is XXᵀ. As in torch every product is rounded.
func orthogonalize[T Float](s *newtonSchulz, update []T, rows, cols int, o *MuonOptions, threads int) error {
	m, k := min(rows, cols), max(rows, cols)
	s.x, s.next, s.transposed = sized(s.x, m*k), sized(s.next, m*k), sized(s.transposed, m*k)
	s.gram, s.square = sized(s.gram, m*m), sized(s.square, m*m)
	x, next := s.x, s.next
	for i, v := range update {
		x[i] = bfloat16(float32(v))
	}
	if rows > cols {
		transpose(s.transposed, x, rows, cols)
		copy(x, s.transposed)
	}
	sum := 0.0
	for _, v := range x {
		sum += float64(v) * float64(v)
	}
	norm := max(bfloat16(float32(math.Sqrt(sum))), bfloat16(float32(o.Eps)))
	for i := range x {
		x[i] = bfloat16(x[i] / norm)
	}
	a, b, c := o.NSCoefficients[0], o.NSCoefficients[1], o.NSCoefficients[2]
	for range o.NSSteps {
		transpose(s.transposed, x, m, k)
		err := errors.Join(
			s.product.run(s.gram, x, s.transposed, nil, m, k, m, 1, 0, threads),
			s.product.run(s.square, s.gram, s.gram, s.gram, m, m, m, c, b, threads),
			s.product.run(next, s.square, x, x, m, m, k, 1, a, threads),
		)
		if err != nil {
			return err
		}
		x, next = next, x
	}
	if rows > cols {
		transpose(s.transposed, x, m, k)
		x = s.transposed
	}
	for i, v := range x {
		update[i] = T(v)
	}
	return nil
}

// A product of matrices is alpha·AB + beta·C, rounded to bfloat16; A has inner columns, B and C have cols.
type product struct {
	out, a, b, c []float32
	inner, cols  int
	alpha, beta  float32
	row          [1]engine.Row
}

func (p *product) run(out, a, b, c []float32, rows, inner, cols int, alpha, beta float64, threads int) error {
	p.out, p.a, p.b, p.c, p.inner, p.cols, p.alpha, p.beta = out, a, b, c, inner, cols, float32(alpha), float32(beta)
	// The engine splits the multiplications; an element of the product is of the chunk in which its first one is.
	p.row[0] = engine.Row{
		N:     int64(rows) * int64(inner) * int64(cols),
		Kind:  engine.KindOf(engine.Float32, engine.None),
		Param: address(out),
	}
	if err := engine.Run(p, p.row[:], threads, nil); err != nil {
		return fmt.Errorf("goptim: Muon: %w", err)
	}
	return nil
}

// A tile of B of so many rows and columns stays in a core's cache while all rows of A in a chunk pass it.
const tileRows, tileCols = 128, 512

// Update implements engine.Pass.
func (p *product) Update(part engine.Part) {
	lo, hi := (part.Lo+p.inner-1)/p.inner, (part.Hi+p.inner-1)/p.inner
	if lo >= hi {
		return
	}
	f := factorsPool.Get().(*factors)
	defer factorsPool.Put(f)
	clear(p.out[lo:hi])
	for col := 0; col < p.cols; col += tileCols {
		for k := 0; k < p.inner; k += tileRows {
			for row := lo / p.cols; row*p.cols < hi; row++ {
				from, to := max(lo, row*p.cols+col), min(hi, row*p.cols+min(col+tileCols, p.cols))
				if from < to {
					p.accumulate(f, row, k, min(k+tileRows, p.inner), from, to)
				}
			}
		}
	}
	for i := lo; i < hi; i++ {
		x := p.alpha * p.out[i]
		if p.c != nil {
			x += float32(p.beta * p.c[i])
		}
		p.out[i] = bfloat16(x)
	}
}

// factors is what accumulate needs, not on the stack: see kernel.Apply.
type factors struct {
	kernel.Combine
	rest [5][]float32 // a vector of the product, and of four rows
}

var factorsPool = sync.Pool{New: func() any {
	f := new(factors)
	for i := range f.rest {
		f.rest[i] = make([]float32, kernel.Lanes[float32]())
	}
	return f
}}

// accumulate adds the products of elements k to end of a row of A with those rows of B to elements from to to of the product.
func (p *product) accumulate(f *factors, row, k, end, from, to int) {
	a := p.a[row*p.inner:][:p.inner]
	at, n := from-row*p.cols, to-from
	whole := n - n%kernel.Lanes[float32]()
	for ; k < end; k += 4 {
		var columns [4][]float32
		for i := range columns {
			f.A[i], columns[i] = 0, columns[0]
			if k+i < end {
				f.A[i], columns[i] = float64(a[k+i]), p.b[(k+i)*p.cols+at:][:n]
			}
		}
		kernel.Apply(f32.Combine, &f.Combine, p.out[from:from+whole], columns[0][:whole], [3][]float32(columns[1:]))
		if whole == n {
			continue
		}
		// Apply's own copies would be written back to B, which other threads read.
		copy(f.rest[0], p.out[from+whole:to])
		for i, c := range columns {
			copy(f.rest[1+i], c[whole:])
		}
		kernel.Apply(f32.Combine, &f.Combine, f.rest[0], f.rest[1], [3][]float32(f.rest[2:]))
		copy(p.out[from+whole:to], f.rest[0])
	}
}

// transpose makes to, of cols rows, the transpose of from, in squares that stay in cache.
func transpose(to, from []float32, rows, cols int) {
	const side = 32
	for i0 := 0; i0 < rows; i0 += side {
		for j0 := 0; j0 < cols; j0 += side {
			for i := i0; i < min(i0+side, rows); i++ {
				for j := j0; j < min(j0+side, cols); j++ {
					to[j*rows+i] = from[i*cols+j]
				}
			}
		}
	}
}

// sized is a slice of n elements, of s's memory if that is enough.
func sized[E any](s []E, n int) []E { return slices.Grow(s[:0], n)[:n] }

// lrAdjustments are torch's names of the adjustments; null is the first, and what it does not know the last.
var lrAdjustments = [...]string{"original", "match_rms_adamw", "spectral_unclamped", "none"}

func (a LRAdjustment) String() string {
	if a < 0 || a > AdjustNone {
		return fmt.Sprintf("LRAdjustment(%d)", int64(a))
	}
	return lrAdjustments[a]
}

// MarshalText is the adjustment's name in torch.
func (a LRAdjustment) MarshalText() ([]byte, error) {
	if a < 0 || a > AdjustNone {
		return nil, fmt.Errorf("goptim: %v: %w", a, ErrOption)
	}
	return []byte(a.String()), nil
}

// UnmarshalText takes a name that MarshalText gives.
func (a *LRAdjustment) UnmarshalText(text []byte) error {
	i := slices.Index(lrAdjustments[:], string(text))
	if i < 0 {
		return fmt.Errorf("goptim: %q, expected one of %q: %w", text, lrAdjustments, ErrOption)
	}
	*a = LRAdjustment(i)
	return nil
}

func (m *Muon[T]) tensors(param int) []safetensors.Tensor {
	return []safetensors.Tensor{tensorOf("momentum_buffer", m.params[param].shape(), m.momenta[param])}
}

func (m *Muon[T]) load(saved *savedGroup) (func(), error) {
	o, err := muonClass.load(saved, m.MuonOptions)
	if err == nil {
		err = muonClass.checkOptions(o)
	}
	if err != nil {
		return nil, err
	}
	momenta := make([][]T, len(m.params))
	for i, p := range m.params {
		s := &saved.states[i]
		if s.empty() {
			momenta[i] = make([]T, len(p.Value))
			continue
		}
		momenta[i] = vector[T](s, "momentum_buffer", len(p.Value))
		if err := s.end(); err != nil {
			return nil, err
		}
	}
	return func() { m.MuonOptions, m.momenta = *o, momenta }, nil
}
