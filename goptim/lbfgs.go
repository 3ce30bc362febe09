package goptim

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"unsafe"

	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/goptim/internal/lbfgs"
	"github.com/goptim/goptim/goptim/internal/safetensors"
	"github.com/goptim/goptim/internal/steps"
)

// LBFGSOptions are the hyperparameters of L-BFGS.
type LBFGSOptions struct {
	LR              float64 `torch:"lr" default:"1" range:"[0,inf]"`             // step size along a direction, or the first one of the line search
	MaxIter         int     `torch:"max_iter" default:"20" range:"[1,inf]"`      // maximum number of iterations per Step
	MaxEval         int     `torch:"max_eval" range:"[1,inf]"`                   // maximum number of evaluations per Step; New replaces 0 by MaxIter*5/4
	ToleranceGrad   float64 `torch:"tolerance_grad" default:"1e-7"`              // a Step ends if no gradient element is larger; if negative, never
	ToleranceChange float64 `torch:"tolerance_change" default:"1e-9"`            // a Step ends if neither the loss nor the values change by more; if negative, never
	HistorySize     int     `torch:"history_size" default:"100" range:"[1,inf]"` // number of pairs of vectors that approximate the Hessian
	StrongWolfe     bool    `torch:"line_search_fn,null"`                        // search along each direction for a point that satisfies the strong Wolfe conditions
	Maximize        bool    `torch:"maximize"`
}

var lbfgsClass = class[LBFGSOptions]{name: "LBFGS", encodings: map[string]any{"line_search_fn": lineSearchName(false)}}.described()

// LBFGS is the quasi-Newton method of Liu & Nocedal, "On the limited memory BFGS method for large scale optimization",
// Mathematical Programming 45 (1989); see Nocedal & Wright, "Numerical Optimization" (2nd ed.), Algorithms 7.4 and 7.5.
// With StrongWolfe, the line search is that of Mark Schmidt's minFunc, as in torch: Algorithms 3.5 and 3.6 of the same
// book with cubic interpolation.
//
// It evaluates the same points as torch.optim.LBFGS, up to rounding. Dot products are summed in a different order than
// torch's, so losses agree up to rounding and not bit for bit. They depend neither on the number of threads nor on the
// vector width.
//
// If the elements have 16 bits, only the parameters and gradients do: directions, the history and the point at which a line search
// starts are float32. A parameter is rounded each time it is written, and the next movement starts at the rounded point.
type LBFGS[T Element] struct {
	LBFGSOptions     // used by the next Step; may be changed between steps
	Workers      int // maximum number of threads of a Step; 0 means GOMAXPROCS
	params       []*Param[T]
	machine      lbfgs.Machine
	segments     []lbfgs.Segment
	history      []lbfgsPair  // oldest first
	spare        lbfgsPair    // memory for the next pair
	pairs        [][2]uintptr // addresses of history
	ro, alpha    []float64
	direction    lbfgsVector
	kept         lbfgsVector // gradient for which the direction was computed
	low          lbfgsVector // gradient at the line search's point of lowest loss
	start        lbfgsVector // parameters at the start of the line search
}

// An lbfgsPair is a change s of the parameters and the resulting change y of the gradient.
type lbfgsPair struct{ y, s lbfgsVector }

// An lbfgsVector has elements of all parameters, in the type of the arithmetic: double for float64, single for all others.
type lbfgsVector struct {
	single []float32
	double []float64
}

func newLBFGSVector[T Element](n int) lbfgsVector {
	if dtype[T]() == engine.Float64 {
		return lbfgsVector{double: make([]float64, n)}
	}
	return lbfgsVector{single: make([]float32, n)}
}

func (v lbfgsVector) len() int { return max(len(v.single), len(v.double)) }

func (v lbfgsVector) address() uintptr {
	if v.double != nil {
		return address(v.double)
	}
	return address(v.single)
}

func (v lbfgsVector) tensor(key string) safetensors.Tensor {
	if v.double != nil {
		return tensorOf(key, []int{v.len()}, v.double)
	}
	return tensorOf(key, []int{v.len()}, v.single)
}

// lbfgsVectorOf reads a vector of a saved state. For parameters of 16 bits, it may have their type, as torch's state does.
func lbfgsVectorOf[T Element](s *savedState, key string, n int) (v lbfgsVector) {
	switch {
	case dtype[T]() == engine.Float64:
		v.double = vector[float64](s, key, n)
	case dtype[T]() != engine.Float32 && s.tensors[key].DType == dtypeName[T]():
		narrow := vector[T](s, key, n)
		if narrow != nil {
			v.single = make([]float32, n)
			o := engine.OperandOf(address(narrow), dtype[T]())
			o.Read(v.single, 0)
			runtime.KeepAlive(narrow)
		}
	default:
		v.single = vector[float32](s, key, n)
	}
	return v
}

// lbfgsRound returns x rounded to the type of the arithmetic.
func lbfgsRound[T Element](x float64) float64 {
	if dtype[T]() == engine.Float64 {
		return x
	}
	return float64(float32(x))
}

// lbfgsScalarOf is a number in the type of the arithmetic.
func lbfgsScalarOf[T Element](key string, x float64) safetensors.Tensor {
	if dtype[T]() == engine.Float64 {
		return scalarOf(key, x)
	}
	return scalarOf(key, float32(x))
}

// ErrLineSearch reports a failed line search. The parameters have the values from before the line search.
var ErrLineSearch = errors.New("line search failed")

// NewLBFGS returns a new LBFGS for params, which are optimized as one vector. The error wraps ErrOption or ErrParam.
func NewLBFGS[T Element](params []*Param[T], o LBFGSOptions) (*LBFGS[T], error) {
	lbfgsClass.setDefaults(&o)
	if o.MaxEval == 0 {
		o.MaxEval = max(1, o.MaxIter*5/4)
	}
	if err := errors.Join(lbfgsClass.checkOptions(&o), checkParams("LBFGS", params)); err != nil {
		return nil, err
	}
	return &LBFGS[T]{LBFGSOptions: o, params: slices.Clone(params)}, nil
}

// A lineSearchName reports whether there is a line search. In JSON it is the name of the line search in torch.
type lineSearchName bool

func (s lineSearchName) MarshalJSON() ([]byte, error) {
	if s {
		return []byte(`"strong_wolfe"`), nil
	}
	return []byte("null"), nil
}

func (s *lineSearchName) UnmarshalJSON(data []byte) error {
	*s = string(data) == `"strong_wolfe"`
	if !*s && string(data) != "null" {
		return fmt.Errorf("%s, expected \"strong_wolfe\" or null", data)
	}
	return nil
}

// Iterations returns the number of directions that the optimizer has taken so far.
func (l *LBFGS[T]) Iterations() int { return int(l.machine.Iterations) }

// Evaluations returns the number of points evaluated so far, without those of a line search that ended in an error.
func (l *LBFGS[T]) Evaluations() int { return int(l.machine.Evaluations) }

// Step performs up to MaxIter iterations and returns the loss before the first one. The closure evaluates the loss at the
// parameters' values and sets their gradients; a nil Grad counts as zeros. If the closure returns an error, Step returns
// that error unchanged. The parameters then have the values for which the closure was called, and the next Step continues
// from there.
//
// Other errors wrap ErrOption, ErrParam or ErrLineSearch. Step returns errors of options and parameters before it changes
// a value if they can be known then.
func (l *LBFGS[T]) Step(closure func() (loss float64, err error)) (float64, error) {
	if closure == nil {
		return 0, fmt.Errorf("goptim: LBFGS: Step needs a closure: %w", ErrOption)
	}
	if err := l.Check(); err != nil {
		return 0, err
	}
	first, err := l.evaluate(closure)
	if err != nil {
		return first, err
	}
	l.begin()
	m := &l.machine
	for {
		ask, err := m.Resume(l.Workers, nil)
		runtime.KeepAlive(l) // the machine contains addresses
		if err != nil {
			return first, lbfgsError(err)
		}
		switch ask {
		case lbfgs.Evaluate:
			if _, err := l.evaluate(closure); err != nil {
				return first, err
			}
		case lbfgs.StorePair:
			l.storePair()
		case lbfgs.Done, lbfgs.Optimal:
			return first, nil
		default:
			return first, fmt.Errorf("goptim: LBFGS: %w: %v", ErrLineSearch, ask)
		}
	}
}

func init() {
	steps.ResumeLBFGS = func(address uintptr, size, threads int, team func(threads int, work func(thread int))) (int64, error) {
		ask, err := lbfgs.ResumeAt(address, size, threads, team)
		if err != nil {
			err = lbfgsError(err)
		}
		return int64(ask), err
	}
}

// lbfgsError converts an error of package lbfgs to an error of this package.
func lbfgsError(err error) error {
	var invalid *lbfgs.InvalidError
	if errors.As(err, &invalid) {
		return fmt.Errorf("goptim: LBFGS: %w: %w", err, ErrParam)
	}
	return fmt.Errorf("goptim: LBFGS: %w", err)
}

// Rescale multiplies the length of the last movement, which ended a Step without StrongWolfe, by a factor. It is for a
// caller that has moved the parameters to another point along the direction, for example by its own line search.
func (l *LBFGS[T]) Rescale(factor float64) { l.machine.T.Value *= factor }

// Check returns the error that Step would return before it calls the closure.
func (l *LBFGS[T]) Check() error {
	return errors.Join(lbfgsClass.checkOptions(&l.LBFGSOptions), l.checkLengths())
}

func (l *LBFGS[T]) checkLengths() error {
	n := l.elements()
	if n == 0 || (l.kept.len() != 0 && n != l.kept.len()) {
		return fmt.Errorf("goptim: LBFGS: %d elements in all parameters, expected %s: %w", n, expectedLength(l.kept.len()), ErrParam)
	}
	return nil
}

func expectedLength(n int) string {
	if n == 0 {
		return "some"
	}
	return fmt.Sprintf("%d as at the first step", n)
}

// evaluate calls the closure and sets the machine's loss and addresses of the gradients.
func (l *LBFGS[T]) evaluate(closure func() (float64, error)) (float64, error) {
	loss, err := closure()
	if err != nil {
		return loss, err
	}
	l.segments = l.segments[:0]
	for i, p := range l.params {
		if overlap(p.Value, p.Grad) {
			return loss, p.errOverlap("LBFGS", i)
		}
		if p.Grad != nil && len(p.Grad) != len(p.Value) {
			return loss, fmt.Errorf("goptim: LBFGS: %s: the gradient has %d elements, expected %d: %w",
				p.describe(i), len(p.Grad), len(p.Value), ErrParam)
		}
		l.segments = append(l.segments, lbfgs.Segment{N: len(p.Value), Param: address(p.Value), Grad: address(p.Grad)})
	}
	if err := l.checkLengths(); err != nil {
		return loss, err
	}
	m := &l.machine
	m.Loss, m.Negate = loss, 0
	if l.Maximize {
		m.Loss, m.Negate = -loss, 1
	}
	m.Segments, m.SegmentCount = engine.Address(unsafe.Pointer(unsafe.SliceData(l.segments))), len(l.segments)
	return loss, nil
}

// begin prepares the machine for a Step after the first evaluation.
func (l *LBFGS[T]) begin() {
	m := &l.machine
	if l.kept.len() == 0 {
		n := l.elements()
		l.kept, l.direction, l.spare = newLBFGSVector[T](n), newLBFGSVector[T](n), newLBFGSPair[T](n)
		l.bind()
	}
	m.LR = lbfgs.Number{Value: l.LR, Kind: lbfgs.Float}
	m.MaxIter, m.MaxEval = l.MaxIter, l.MaxEval
	m.ToleranceGrad, m.ToleranceChange = l.ToleranceGrad, l.ToleranceChange
	m.StrongWolfe = 0
	if l.StrongWolfe {
		m.StrongWolfe = 1
		if l.low.len() == 0 {
			l.low, l.start = newLBFGSVector[T](m.N), newLBFGSVector[T](m.N)
			m.Low, m.Start = l.low.address(), l.start.address()
		}
	}
	m.Phase = 0
	m.Evaluations++
}

func (l *LBFGS[T]) elements() (n int) {
	for _, p := range l.params {
		n += len(p.Value)
	}
	return n
}

func newLBFGSPair[T Element](n int) lbfgsPair {
	return lbfgsPair{newLBFGSVector[T](n), newLBFGSVector[T](n)}
}

// bind sets the addresses of the machine's vectors.
func (l *LBFGS[T]) bind() {
	m := &l.machine
	m.N, m.Float64, m.Narrow = l.kept.len(), 0, 0
	switch d := dtype[T](); d {
	case engine.Float64:
		m.Float64 = 1
	case engine.BFloat16, engine.Float16:
		m.Narrow = int(d)
	}
	m.Kept, m.Direction, m.LastDirection = l.kept.address(), l.direction.address(), l.direction.address()
	l.bindPairs()
}

func (l *LBFGS[T]) bindPairs() {
	m := &l.machine
	l.pairs = l.pairs[:0]
	for _, p := range l.history {
		l.pairs = append(l.pairs, [2]uintptr{p.y.address(), p.s.address()})
	}
	m.Pairs, m.PairCount = engine.Address(unsafe.Pointer(unsafe.SliceData(l.pairs))), len(l.pairs)
	m.Ros, m.Alphas = address(l.ro), address(l.alpha)
	m.Y, m.S = l.spare.y.address(), l.spare.s.address()
}

// storePair appends the machine's new pair to the history. If the history is full, the memory of the oldest pair is
// reused for the next one.
func (l *LBFGS[T]) storePair() {
	m, newest := &l.machine, l.spare
	l.spare = lbfgsPair{}
	for len(l.history) >= l.HistorySize {
		l.spare = l.history[0]
		l.history, l.ro = append(l.history[:0], l.history[1:]...), append(l.ro[:0], l.ro[1:]...)
	}
	l.history, l.ro = append(l.history, newest), append(l.ro, m.Ro)
	if l.spare.y.len() == 0 {
		l.spare, l.alpha = newLBFGSPair[T](m.N), make([]float64, len(l.history))
	}
	l.bindPairs()
}

// MarshalBinary encodes the options and the state. See Stateful.
func (l *LBFGS[T]) MarshalBinary() ([]byte, error) { return marshal(l) }

// UnmarshalBinary restores the options and the state. See Stateful.
func (l *LBFGS[T]) UnmarshalBinary(data []byte) error { return unmarshal(l, data) }

func (l *LBFGS[T]) groups() []group   { return []group{l} }
func (l *LBFGS[T]) usable() error     { return nil }
func (l *LBFGS[T]) className() string { return lbfgsClass.name }
func (l *LBFGS[T]) options() []option { return lbfgsClass.options(&l.LBFGSOptions) }
func (l *LBFGS[T]) handles() []handle { return handlesOf(l.params) }

// ordered returns true because the vectors contain the parameters in order.
func (l *LBFGS[T]) ordered() bool { return true }

// tensors returns the state, all of it for the first parameter.
func (l *LBFGS[T]) tensors(param int) []safetensors.Tensor {
	m := &l.machine
	if param != 0 || m.Evaluations == 0 {
		return nil
	}
	all := []safetensors.Tensor{integerOf("n_iter", m.Iterations), integerOf("func_evals", m.Evaluations)}
	if m.Iterations == 0 {
		return all
	}
	all = append(all,
		l.direction.tensor("d"), l.kept.tensor("prev_flat_grad"), scalarOf("prev_loss", m.PrevLoss),
		lbfgsNumberOf[T]("t", m.T), lbfgsNumberOf[T]("H_diag", m.H))
	for i, p := range l.history {
		all = append(all, p.y.tensor(fmt.Sprintf("old_dirs.%d", i)), p.s.tensor(fmt.Sprintf("old_stps.%d", i)),
			lbfgsScalarOf[T](fmt.Sprintf("ro.%d", i), l.ro[i]))
	}
	return all
}

func lbfgsNumberOf[T Element](key string, n lbfgs.Number) safetensors.Tensor {
	switch n.Kind {
	case lbfgs.Int:
		return integerOf(key, int(n.Value))
	case lbfgs.Float:
		return scalarOf(key, n.Value)
	}
	return lbfgsScalarOf[T](key, n.Value)
}

func (l *LBFGS[T]) load(saved *savedGroup) (func(), error) {
	n := l.elements()
	o, err := lbfgsClass.load(saved, l.LBFGSOptions)
	if err == nil {
		err = lbfgsClass.checkOptions(o)
	}
	if err != nil {
		return nil, err
	}
	for i := 1; i < len(saved.states); i++ {
		if err := saved.states[i].end(); err != nil {
			return nil, err
		}
	}
	next := LBFGS[T]{LBFGSOptions: *o, Workers: l.Workers, params: l.params}
	m, s := &next.machine, &saved.states[0]
	if !s.empty() {
		m.Iterations, m.Evaluations = int(s.count("n_iter")), int(s.count("func_evals"))
	}
	if m.Iterations > 0 {
		next.direction, next.kept = lbfgsVectorOf[T](s, "d", n), lbfgsVectorOf[T](s, "prev_flat_grad", n)
		m.PrevLoss, _ = s.number("prev_loss")
		m.T, m.H = lbfgsNumberIn[T](s, "t"), lbfgsNumberIn[T](s, "H_diag")
		for i := 0; s.has(fmt.Sprintf("ro.%d", i)); i++ {
			ro, _ := s.number(fmt.Sprintf("ro.%d", i))
			next.history = append(next.history, lbfgsPair{
				lbfgsVectorOf[T](s, fmt.Sprintf("old_dirs.%d", i), n), lbfgsVectorOf[T](s, fmt.Sprintf("old_stps.%d", i), n)})
			next.ro = append(next.ro, lbfgsRound[T](ro))
		}
	}
	if len(next.history) > o.HistorySize {
		s.fail("%d pairs of vectors, expected at most %d, its history_size", len(next.history), o.HistorySize)
	}
	if err := s.end(); err != nil {
		return nil, err
	}
	return func() {
		*l = next
		if l.kept.len() != 0 {
			l.spare, l.alpha = newLBFGSPair[T](n), make([]float64, len(l.history))
			l.bind()
		}
	}, nil
}

// lbfgsNumberIn reads a number that is saved as a Python int, a Python float or a tensor.
func lbfgsNumberIn[T Element](s *savedState, key string) lbfgs.Number {
	x, of := s.number(key)
	switch {
	case of == "I64":
		return lbfgs.Number{Value: x, Kind: lbfgs.Int}
	case (of == "F64") != (dtype[T]() == engine.Float64):
		return lbfgs.Number{Value: x, Kind: lbfgs.Float}
	}
	return lbfgs.Number{Value: x, Kind: lbfgs.Tensor}
}
