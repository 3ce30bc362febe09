package goptim

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"unsafe"

	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/goptim/internal/safetensors"
)

// LBFGSOptions are the hyperparameters of L-BFGS.
type LBFGSOptions struct {
	LR              float64 `torch:"lr" default:"1" range:"[0,inf]"`             // the step along a direction, or the line search's first
	MaxIter         int     `torch:"max_iter" default:"20" range:"[1,inf]"`      // iterations in a Step
	MaxEval         int     `torch:"max_eval" range:"[1,inf]"`                   // evaluations in a Step; New takes 0 as MaxIter*5/4
	ToleranceGrad   float64 `torch:"tolerance_grad" default:"1e-7"`              // a Step ends where no gradient is larger; below 0: never
	ToleranceChange float64 `torch:"tolerance_change" default:"1e-9"`            // a Step ends where neither loss nor values change by more; below 0: never
	HistorySize     int     `torch:"history_size" default:"100" range:"[1,inf]"` // pairs of vectors that stand for the Hessian
	StrongWolfe     bool    `torch:"line_search_fn,null"`                        // search along a direction for a point that meets the strong Wolfe conditions
	Maximize        bool    `torch:"maximize"`
}

var lbfgsClass = class[LBFGSOptions]{name: "LBFGS", encodings: map[string]any{"line_search_fn": lineSearchName(false)}}.described()

// LBFGS is the quasi-Newton method of Liu & Nocedal, "On the limited memory BFGS method for large scale optimization",
// Mathematical Programming 45 (1989); see Nocedal & Wright, "Numerical Optimization" (2nd ed.), Algorithms 7.4 and 7.5.
// With StrongWolfe its line search is that of Mark Schmidt's minFunc, which torch has: their Algorithms 3.5 and 3.6 with
// cubic interpolation.
//
// It evaluates where torch.optim.LBFGS does. Sums over vectors are rounded in another order than torch's, so losses
// agree to rounding, not in every bit; they depend on neither the number of threads nor the width of vectors.
type LBFGS[T Float] struct {
	LBFGSOptions     // as the next Step uses them
	Workers      int // as many threads as a Step may use; 0 means GOMAXPROCS
	params       []*Param[T]
	machine      LBFGSMachine
	segments     []lbfgsSegment
	history      []lbfgsPair[T] // the oldest first
	spare        lbfgsPair[T]
	pairs        [][2]uintptr // the addresses of history
	ro, alpha    []float64
	direction    []T
	kept         []T // the gradient where the direction began
	low          []T // the gradient at the line search's lowest point
	start        []T // the parameters where the line search began
}

// A lbfgsPair is a change of the gradient, y, and the change of the parameters, s, that brought it about.
type lbfgsPair[T Float] struct{ y, s []T }

// ErrLineSearch is a line search that has no point to go on from. The parameters are where it began.
var ErrLineSearch = errors.New("line search failed")

// NewLBFGS makes an LBFGS of params, all optimized as one vector. The error wraps ErrOption or ErrParam.
func NewLBFGS[T Float](params []*Param[T], o LBFGSOptions) (*LBFGS[T], error) {
	lbfgsClass.setDefaults(&o)
	if o.MaxEval == 0 {
		o.MaxEval = max(1, o.MaxIter*5/4)
	}
	if err := errors.Join(lbfgsClass.checkOptions(&o), checkParams("LBFGS", params)); err != nil {
		return nil, err
	}
	return &LBFGS[T]{LBFGSOptions: o, params: slices.Clone(params)}, nil
}

// A lineSearchName is in JSON whether there is a line search, by its name in torch.
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

// Iterations is how many directions the optimizer has taken so far, and Evaluations how many points.
func (l *LBFGS[T]) Iterations() int { return int(l.machine.Iterations) }

// Evaluations is how many points the optimizer has evaluated so far, apart from a line search that ended in an error.
func (l *LBFGS[T]) Evaluations() int { return int(l.machine.Evaluations) }

// Step takes up to MaxIter iterations and returns the loss where they began. The closure evaluates the loss at the
// parameters' values, and puts the gradients beside these; a Grad that is nil counts as zeros. Its error ends the Step,
// which returns it as it is; the parameters are where it was called then, and the next Step goes on from there.
//
// Other errors wrap ErrOption or ErrParam, and come before a value is changed if they can be known then, or
// ErrLineSearch.
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
		runtime.KeepAlive(l) // the machine holds addresses
		if err != nil {
			return first, err
		}
		switch ask {
		case LBFGSEvaluate:
			if _, err := l.evaluate(closure); err != nil {
				return first, err
			}
		case LBFGSRemember:
			l.remember()
		case LBFGSDone, LBFGSOptimal:
			return first, nil
		default:
			return first, fmt.Errorf("goptim: LBFGS: %w: %v", ErrLineSearch, ask)
		}
	}
}

// Rescale multiplies the length of the last movement, which ended a Step without StrongWolfe, by a factor. It is for a
// caller that has moved the parameters to another point along the direction, as by a line search of its own.
func (l *LBFGS[T]) Rescale(factor float64) { l.machine.T.Value *= factor }

// Check reports what Step would refuse now, before it calls the closure.
func (l *LBFGS[T]) Check() error {
	return errors.Join(lbfgsClass.checkOptions(&l.LBFGSOptions), l.checkLengths())
}

func (l *LBFGS[T]) checkLengths() error {
	n := l.elements()
	if n == 0 || (l.kept != nil && n != len(l.kept)) {
		return fmt.Errorf("goptim: LBFGS: %d elements in all parameters, expected %s: %w", n, expectedLength(len(l.kept)), ErrParam)
	}
	return nil
}

func expectedLength(n int) string {
	if n == 0 {
		return "some"
	}
	return fmt.Sprintf("%d as at the first step", n)
}

// evaluate calls the closure and has the machine see what it left.
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
		l.segments = append(l.segments, lbfgsSegment{len(p.Value), address(p.Value), address(p.Grad)})
	}
	if err := l.checkLengths(); err != nil {
		return loss, err
	}
	m := &l.machine
	m.Loss, m.Negate = loss, 0
	if l.Maximize {
		m.Loss, m.Negate = -loss, 1
	}
	m.Segments, m.SegmentCount = uintptr(unsafe.Pointer(unsafe.SliceData(l.segments))), len(l.segments)
	return loss, nil
}

// begin sets the machine up for a Step whose first evaluation is done.
func (l *LBFGS[T]) begin() {
	m := &l.machine
	if l.kept == nil {
		n := l.elements()
		l.kept, l.direction, l.spare = make([]T, n), make([]T, n), newLBFGSPair[T](n)
		l.bind()
	}
	m.LR = LBFGSNumber{l.LR, lbfgsFloat}
	m.MaxIter, m.MaxEval = l.MaxIter, l.MaxEval
	m.ToleranceGrad, m.ToleranceChange = l.ToleranceGrad, l.ToleranceChange
	m.StrongWolfe = 0
	if l.StrongWolfe {
		m.StrongWolfe = 1
		if l.low == nil {
			l.low, l.start = make([]T, m.N), make([]T, m.N)
			m.Low, m.Start = address(l.low), address(l.start)
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

func newLBFGSPair[T Float](n int) lbfgsPair[T] { return lbfgsPair[T]{make([]T, n), make([]T, n)} }

// bind tells the machine where its vectors are.
func (l *LBFGS[T]) bind() {
	m := &l.machine
	m.N, m.Float64 = len(l.kept), 0
	if dtype[T]() == engine.Float64 {
		m.Float64 = 1
	}
	m.Kept, m.Direction, m.LastDirection = address(l.kept), address(l.direction), address(l.direction)
	l.bindPairs()
}

func (l *LBFGS[T]) bindPairs() {
	m := &l.machine
	l.pairs = l.pairs[:0]
	for _, p := range l.history {
		l.pairs = append(l.pairs, [2]uintptr{address(p.y), address(p.s)})
	}
	m.Pairs, m.PairCount = uintptr(unsafe.Pointer(unsafe.SliceData(l.pairs))), len(l.pairs)
	m.Ros, m.Alphas = address(l.ro), address(l.alpha)
	m.Y, m.S = address(l.spare.y), address(l.spare.s)
}

// remember puts the pair that the machine has made into the history, in the place of the oldest if there is no other.
func (l *LBFGS[T]) remember() {
	m, made := &l.machine, l.spare
	l.spare = lbfgsPair[T]{}
	for len(l.history) >= l.HistorySize {
		l.spare = l.history[0]
		l.history, l.ro = append(l.history[:0], l.history[1:]...), append(l.ro[:0], l.ro[1:]...)
	}
	l.history, l.ro = append(l.history, made), append(l.ro, m.Ro)
	if l.spare.y == nil {
		l.spare, l.alpha = newLBFGSPair[T](m.N), make([]float64, len(l.history))
	}
	l.bindPairs()
}

// MarshalBinary encodes options and state: see Stateful.
func (l *LBFGS[T]) MarshalBinary() ([]byte, error) { return marshal(l) }

// UnmarshalBinary takes options and state: see Stateful.
func (l *LBFGS[T]) UnmarshalBinary(data []byte) error { return unmarshal(l, data) }

func (l *LBFGS[T]) groups() []group   { return []group{l} }
func (l *LBFGS[T]) usable() error     { return nil }
func (l *LBFGS[T]) className() string { return lbfgsClass.name }
func (l *LBFGS[T]) options() []option { return lbfgsClass.options(&l.LBFGSOptions) }
func (l *LBFGS[T]) handles() []handle { return handlesOf(l.params) }

// ordered is true: the vectors lie in the order of the parameters.
func (l *LBFGS[T]) ordered() bool { return true }

// tensors are all on the first parameter.
func (l *LBFGS[T]) tensors(param int) []safetensors.Tensor {
	m := &l.machine
	if param != 0 || m.Evaluations == 0 {
		return nil
	}
	all := []safetensors.Tensor{integerOf("n_iter", m.Iterations), integerOf("func_evals", m.Evaluations)}
	if m.Iterations == 0 {
		return all
	}
	shape := []int{len(l.kept)}
	all = append(all,
		tensorOf("d", shape, l.direction), tensorOf("prev_flat_grad", shape, l.kept), scalarOf("prev_loss", m.PrevLoss),
		lbfgsNumberOf[T]("t", m.T), lbfgsNumberOf[T]("H_diag", m.H))
	for i, p := range l.history {
		all = append(all, tensorOf(fmt.Sprintf("old_dirs.%d", i), shape, p.y), tensorOf(fmt.Sprintf("old_stps.%d", i), shape, p.s),
			scalarOf(fmt.Sprintf("ro.%d", i), T(l.ro[i])))
	}
	return all
}

func lbfgsNumberOf[T Float](key string, n LBFGSNumber) safetensors.Tensor {
	switch n.Kind {
	case lbfgsInt:
		return integerOf(key, int(n.Value))
	case lbfgsFloat:
		return scalarOf(key, n.Value)
	}
	return scalarOf(key, T(n.Value))
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
		next.direction, next.kept = vector[T](s, "d", n), vector[T](s, "prev_flat_grad", n)
		m.PrevLoss, _ = s.number("prev_loss")
		m.T, m.H = s.lbfgsNumber("t", dtypeName[T]()), s.lbfgsNumber("H_diag", dtypeName[T]())
		for i := 0; s.has(fmt.Sprintf("ro.%d", i)); i++ {
			ro, _ := s.number(fmt.Sprintf("ro.%d", i))
			next.history = append(next.history, lbfgsPair[T]{
				vector[T](s, fmt.Sprintf("old_dirs.%d", i), n), vector[T](s, fmt.Sprintf("old_stps.%d", i), n)})
			next.ro = append(next.ro, float64(T(ro)))
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
		if l.kept != nil {
			l.spare, l.alpha = newLBFGSPair[T](n), make([]float64, len(l.history))
			l.bind()
		}
	}, nil
}

// lbfgsNumber takes a number that is a Python int or float, or a tensor of a dtype.
func (s *savedState) lbfgsNumber(key, dtype string) LBFGSNumber {
	x, of := s.number(key)
	switch of {
	case "I64":
		return LBFGSNumber{x, lbfgsInt}
	case dtype:
		return LBFGSNumber{x, lbfgsTensor}
	}
	return LBFGSNumber{x, lbfgsFloat}
}

// An LBFGSAsk is what an LBFGSMachine needs before it goes on, or how it ended.
type LBFGSAsk int64

// The first three are answered by another Resume, the others end the step.
const (
	// LBFGSEvaluate asks for loss and gradients at the parameters' new values.
	LBFGSEvaluate LBFGSAsk = iota
	// LBFGSRemember asks for the pair at Y and S, whose 1/(y·s) is Ro, to be put at the end of the history, the oldest one
	// to be dropped if it is full, and for memory for the next pair.
	LBFGSRemember
	// LBFGSDone is the end of a step that has made a direction.
	LBFGSDone
	// LBFGSOptimal is the end of a step that began where ToleranceGrad ends it.
	LBFGSOptimal
	// LBFGSEmptyBracket is a line search whose bracket has two equal ends. The parameters are where it began.
	LBFGSEmptyBracket
	// LBFGSNaN is a line search that accepts a point whose loss is NaN. The parameters are where it began.
	LBFGSNaN
	// LBFGSOverflow is a step length that is not finite as a float32. The parameters are where it began.
	LBFGSOverflow
)

func (a LBFGSAsk) String() string {
	switch a {
	case LBFGSEmptyBracket:
		return "both ends of its bracket are the same point"
	case LBFGSNaN:
		return "the loss is NaN where the gradient meets the conditions"
	case LBFGSOverflow:
		return "the step length is too large for float32"
	}
	return fmt.Sprintf("ask %d", int64(a))
}

// An LBFGSMachine is one step of L-BFGS by reverse communication, in memory that its caller owns: it lies anywhere, for
// it is words of 64 bits alone, and nothing stays in Go between two calls of Resume. It is for bindings; a Go program
// uses NewLBFGS. The caller answers for the addresses, which are of dense vectors of N elements unless it says
// otherwise.
type LBFGSMachine struct {
	// The options. MaxIter and MaxEval are at least 1.
	LR                             LBFGSNumber
	MaxIter, MaxEval               int
	ToleranceGrad, ToleranceChange float64
	StrongWolfe                    int // not 0: with the line search
	MaxSearch                      int // evaluations in a line search after its first; 0: those that MaxEval leaves

	// What the last evaluation left, a loss that is to be minimized, and the parameters.
	Loss         float64
	Negate       int     // not 0: the gradients are of the negated loss
	Segments     uintptr // rows of three words: elements, the address of a parameter, that of its gradient, 0 for zeros
	SegmentCount int
	N            int // elements in all segments
	Float64      int // not 0: the type of elements; else float32

	// The state at the beginning of the step, and then where it is.
	Iterations    int // directions ever taken; at 0 there is no other state
	Evaluations   int // including the first of this step
	T             LBFGSNumber
	H             LBFGSNumber // the initial Hessian's inverse is H times the identity
	PrevLoss      float64     // the loss where the direction began
	Kept          uintptr     // the gradient where the direction began
	LastDirection uintptr     // read once
	Direction     uintptr     // written; may be LastDirection
	Pairs         uintptr     // the history, oldest first: two addresses a pair, of y and of s
	Ros           uintptr     // 1/(y·s) of every pair, float64
	Alphas        uintptr     // a float64 for every pair, written by the two-loop recursion
	PairCount     int
	Recursions    int // two-loop recursions so far

	// Memory: for the next pair, and for the line search.
	Y, S       uintptr
	Ro         float64
	Low, Start uintptr

	Phase  int // 0 when a step begins, after the first evaluation
	source int // of the gradient: one of from…
	iter   int // in this step
	evals  int
	most   float64 // the largest |g|
	norm1  float64 // the sum of |g|, at the first direction
	newest float64 // the newest pair's s·g
	gtd    float64 // g·d
	dMost  float64 // the largest |d|
	search lineSearch
}

// An LBFGSNumber is a number as torch keeps it: a Python int (0) or float (1), or a tensor of the parameters' type (2).
type LBFGSNumber struct {
	Value float64
	Kind  int
}

const (
	lbfgsInt = iota
	lbfgsFloat
	lbfgsTensor
)

// Where the gradient is.
const (
	fromSegments = iota
	fromKept
	fromLow
)

// What a machine waits for.
const (
	atBegin = iota
	atPair
	atPoint
	atBracketing
	atZooming
)

// Resume goes on until the machine asks for something, on at most threads threads, those of team if it is not nil;
// threads of 0 means GOMAXPROCS. The error wraps ErrParam if the machine cannot be; nothing has changed then.
func (m *LBFGSMachine) Resume(threads int, team func(threads int, work func(thread int))) (LBFGSAsk, error) {
	v, err := vectorsOf(m, threads, team)
	if err != nil {
		return 0, err
	}
	defer v.release()
	r := lbfgsRun{m, v, numbers{single: m.Float64 == 0}}
	ask := r.resume()
	return ask, v.err
}

// ResumeLBFGS resumes the LBFGSMachine of size bytes that lies at an address.
func ResumeLBFGS(address uintptr, size, threads int, team func(threads int, work func(thread int))) (LBFGSAsk, error) {
	if n := int(unsafe.Sizeof(LBFGSMachine{})); !mapped(address) || address%8 != 0 || size != n {
		return 0, fmt.Errorf("goptim: LBFGS: a machine of %d bytes at %#x, expected %d bytes: %w", size, address, n, ErrParam)
	}
	return (*LBFGSMachine)(engine.Pointer(address)).Resume(threads, team)
}

// A lbfgsRun is a machine while it runs. Its formulas are torch's, line by line: numbers that torch has in tensors are
// rounded to their type, comparisons are made in it.
type lbfgsRun struct {
	*LBFGSMachine
	v *vectors
	numbers
}

func (r *lbfgsRun) resume() LBFGSAsk {
	switch r.Phase {
	case atBegin:
		r.iter, r.evals, r.Recursions, r.source = 0, 1, 0, fromSegments
		_, r.most = r.v.dot(gradients, gradients)
		if r.most <= r.round(r.ToleranceGrad) {
			return LBFGSOptimal
		}
		return r.iterate()
	case atPair:
		return r.direct(-r.newest)
	case atPoint:
		r.source = fromSegments
		_, r.most = r.v.dot(gradients, gradients)
		return r.conclude(1)
	case atBracketing:
		return r.bracketed()
	default:
		return r.zoomed()
	}
}

// iterate begins an iteration: it brings the history up to date.
func (r *lbfgsRun) iterate() LBFGSAsk {
	r.iter++
	r.Iterations++
	if r.Iterations == 1 {
		norm1, square, most := r.v.first()
		r.norm1, r.gtd, r.dMost = r.round(norm1), -r.round(square), most
		r.H, r.PairCount = LBFGSNumber{1, lbfgsInt}, 0
		return r.descend()
	}
	ys, yy, sg := r.v.pair(r.T.Value)
	r.LastDirection = r.Direction
	ys = r.round(ys)
	if ys > r.round(1e-10) {
		r.H = LBFGSNumber{r.round(ys / r.round(yy)), lbfgsTensor}
		r.Ro, r.newest = r.round(1/ys), r.round(sg)
		r.Phase = atPair
		return LBFGSRemember
	}
	if r.PairCount == 0 {
		return r.direct(0)
	}
	sq, _ := r.v.dot(r.v.s(r.PairCount-1), r.Direction)
	return r.direct(r.round(sq))
}

// direct is the two-loop recursion, Nocedal & Wright, Algorithm 7.4, in place: from the direction -g to -H·g. It begins
// with the newest s·q. A pass over memory takes one pair's update and the next one's product.
func (r *lbfgsRun) direct(dot float64) LBFGSAsk {
	r.Recursions++
	n, ro, alpha := r.PairCount, r.v.ros, r.v.alphas
	if n == 0 {
		gtd, most := r.v.scale(r.H.Value)
		r.gtd, r.dMost = r.round(gtd), most
		return r.descend()
	}
	for i := n - 1; i > 0; i-- {
		alpha[i] = r.round(dot * ro[i])
		dot, _ = r.v.axpy(-alpha[i], r.v.y(i), r.v.s(i-1))
		dot = r.round(dot)
	}
	alpha[0] = r.round(dot * ro[0])
	dot = r.round(r.v.turn(-alpha[0], r.v.y(0), r.H.Value))
	for i := range n {
		beta := r.round(dot * ro[i])
		next := r.Kept
		if i < n-1 {
			next = r.v.y(i + 1)
		}
		dot, r.dMost = r.v.axpy(r.round(alpha[i]-beta), r.v.s(i), next)
		dot = r.round(dot)
	}
	r.gtd = dot
	return r.descend()
}

// descend moves along the direction, or has the line search do so.
func (r *lbfgsRun) descend() LBFGSAsk {
	r.PrevLoss = r.Loss
	r.T = r.LR
	if r.Iterations == 1 {
		shorter := r.min(LBFGSNumber{1, lbfgsFloat}, r.tensor(1/r.norm1))
		r.T = r.mul(shorter, r.LR)
	}
	if r.gtd > r.round(-r.ToleranceChange) {
		return LBFGSDone
	}
	if r.overflows(r.T) {
		r.T = LBFGSNumber{}
		return LBFGSOverflow
	}
	if r.StrongWolfe != 0 {
		return r.begin()
	}
	r.v.move(r.T.Value)
	if r.iter == r.MaxIter {
		return LBFGSDone
	}
	r.Phase = atPoint
	return LBFGSEvaluate
}

// conclude ends an iteration that has evaluated some points, and the step if there is reason.
func (r *lbfgsRun) conclude(evals int) LBFGSAsk {
	r.evals += evals
	r.Evaluations += evals
	switch {
	case r.iter == r.MaxIter,
		r.evals >= r.MaxEval,
		r.most <= r.round(r.ToleranceGrad),
		r.abs(r.mul(r.tensor(r.dMost), r.T)).Value <= r.round(r.ToleranceChange),
		math.Abs(r.Loss-r.PrevLoss) < r.ToleranceChange:
		return LBFGSDone
	}
	return r.iterate()
}
