// Package lbfgs runs steps of L-BFGS by reverse communication: a [Machine] returns to its caller whenever it needs the
// loss and gradients at another point, and goes on from there when it is resumed. All of its memory is the caller's,
// which may be Go or another language.
package lbfgs

import (
	"fmt"
	"math"
	"unsafe"

	"github.com/goptim/goptim/goptim/internal/engine"
)

// An Ask is what a Machine asks its caller to do before the next Resume, or how the step ended.
type Ask int64

// Evaluate and StorePair are answered by another Resume; the others end the step. The numbers are known to Python.
const (
	// Evaluate asks for the loss and the gradients at the parameters' current values.
	Evaluate Ask = iota
	// StorePair asks the caller to append the pair at Y and S, whose 1/(y·s) is Ro, to the history, to drop the oldest pair
	// if the history is full, and to provide memory for the next pair.
	StorePair
	// Done ends a step that has computed a direction.
	Done
	// Optimal ends a step whose first gradient is within ToleranceGrad.
	Optimal
	// EmptyBracket is a failed line search: both ends of its bracket are the same point. The parameters are back where the
	// search began, as after the following two.
	EmptyBracket
	// NaNLoss is a failed line search: it accepts a point whose loss is NaN.
	NaNLoss
	// Overflow is a failed line search: the step length is not finite as a float32.
	Overflow
)

func (a Ask) String() string {
	switch a {
	case EmptyBracket:
		return "both ends of its bracket are the same point"
	case NaNLoss:
		return "the loss is NaN where the gradient meets the conditions"
	case Overflow:
		return "the step length is too large for float32"
	}
	return fmt.Sprintf("ask %d", int64(a))
}

// A Machine is the state of one step. It consists of 64-bit words, so that other languages can declare it, and may be in
// memory that is not Go's; Go keeps nothing of it between two calls of Resume. Addresses are of contiguous vectors of N
// elements, unless a comment says otherwise, and the caller guarantees that they are valid.
type Machine struct {
	// The options. MaxIter and MaxEval are at least 1.
	LR                             Number
	MaxIter, MaxEval               int
	ToleranceGrad, ToleranceChange float64
	StrongWolfe                    int // nonzero: with a line search
	MaxSearch                      int // evaluations in a line search after its first; 0: as many as MaxEval leaves

	// The parameters, and the result of the last evaluation.
	Loss         float64 // to be minimized
	Negate       int     // nonzero: the gradients are those of the negated loss
	Segments     uintptr // of SegmentCount Segments
	SegmentCount int
	N            int // elements in all segments
	Float64      int // nonzero: elements are float64; else float32
	Narrow       int // the engine.DType of the parameters and gradients if it has 16 bits, or 0. All other vectors are float32

	// The optimizer's state, updated during the step.
	Iterations    int // directions computed so far; if 0, the rest of the state is not read
	Evaluations   int // including the first one of this step
	T             Number
	H             Number // the initial inverse Hessian is H times the identity
	PrevLoss      float64
	Kept          uintptr // the gradient for which the last direction was computed
	LastDirection uintptr // read once
	Direction     uintptr // written; may be LastDirection
	Pairs         uintptr // the history, oldest pair first: for each pair the addresses of y and of s
	Ros           uintptr // 1/(y·s) of each pair, float64
	Alphas        uintptr // one float64 per pair, written by the two-loop recursion
	PairCount     int
	Recursions    int // two-loop recursions in this step

	// Memory for the next pair and for the line search.
	Y, S  uintptr
	Ro    float64
	Low   uintptr // the gradient at the line search's point of lowest loss
	Start uintptr // the parameters where the line search began

	Phase        int // set to 0 for a new step, after its first evaluation
	source       int // where the gradient is
	iter         int // iterations in this step
	evals        int // evaluations in this step
	maxGrad      float64
	gradNorm1    float64 // Σ|g|, for the first direction
	sDotG        float64 // s·g of the newest pair
	slope        float64 // g·d
	maxDirection float64
	search       lineSearch
}

// A Segment is one parameter's part of the flat vectors.
type Segment struct {
	N     int
	Param uintptr
	Grad  uintptr // 0 for a gradient of zeros
}

// A Number is a number as torch stores it: a Python int or float, or a tensor of the parameters' dtype.
type Number struct {
	Value float64
	Kind  int
}

// The kinds of a Number.
const (
	Int = iota
	Float
	Tensor
)

// Where the gradient is: in the segments, or at an address of the Machine.
const (
	inSegments = iota
	inKept
	inLow
)

// The phases of a Machine between two calls of Resume.
const (
	phaseBegin      = iota
	phasePairStored // a pair is in the history, and the direction is computed next
	phaseMoved      // the parameters have moved, without a line search
	phaseBracket    // the line search has evaluated a point to find a bracket
	phaseZoom       // the line search has evaluated a point within its bracket
)

// An InvalidError is the error of Resume for a Machine that cannot be valid. Nothing has changed.
type InvalidError struct{ message string }

func (e *InvalidError) Error() string { return e.message }

func invalid(format string, a ...any) error { return &InvalidError{fmt.Sprintf(format, a...)} }

// Resume runs the machine until it asks for something, on up to so many threads (0 means GOMAXPROCS), those of team unless
// it is nil. The error is an InvalidError, or a panic's.
func (m *Machine) Resume(threads int, team engine.Team) (Ask, error) {
	v, err := vectorsOf(m, threads, team)
	if err != nil {
		return 0, err
	}
	defer v.release()
	s := step{m, v, arithmetic{single: m.Float64 == 0}}
	ask := s.resume()
	return ask, v.err
}

// ResumeAt resumes the Machine at an address, whose size in bytes shows that the caller declares it as this package does.
func ResumeAt(address uintptr, size, threads int, team engine.Team) (Ask, error) {
	if n := int(unsafe.Sizeof(Machine{})); !valid(address) || address%8 != 0 || size != n {
		return 0, invalid("a machine of %d bytes at %#x, expected %d bytes", size, address, n)
	}
	return (*Machine)(engine.Pointer(address)).Resume(threads, team)
}

// A step is a Machine while it runs. Its formulas follow torch.optim.LBFGS line by line, including the dtype of each result
// and comparison.
type step struct {
	*Machine
	v *vectors
	arithmetic
}

func (s *step) resume() Ask {
	switch s.Phase {
	case phaseBegin:
		s.iter, s.evals, s.Recursions, s.source = 0, 1, 0, inSegments
		_, s.maxGrad = s.v.dot(gradients, gradients)
		if s.maxGrad <= s.round(s.ToleranceGrad) {
			return Optimal
		}
		return s.beginIteration()
	case phasePairStored:
		return s.computeDirection(-s.sDotG)
	case phaseMoved:
		s.source = inSegments
		_, s.maxGrad = s.v.dot(gradients, gradients)
		return s.endIteration(1)
	case phaseBracket:
		return s.bracket()
	default:
		return s.zoom()
	}
}

// beginIteration updates the history with the pair of the last iteration.
func (s *step) beginIteration() Ask {
	s.iter++
	s.Iterations++
	if s.Iterations == 1 {
		norm1, square, most := s.v.firstDirection()
		s.gradNorm1, s.slope, s.maxDirection = s.round(norm1), -s.round(square), most
		s.H, s.PairCount = Number{1, Int}, 0
		return s.move()
	}
	ys, yy, sg := s.v.nextPair(s.T.Value)
	s.LastDirection = s.Direction
	ys = s.round(ys)
	if ys > s.round(1e-10) {
		s.H = Number{s.round(ys / s.round(yy)), Tensor}
		s.Ro, s.sDotG = s.round(1/ys), s.round(sg)
		s.Phase = phasePairStored
		return StorePair
	}
	if s.PairCount == 0 {
		return s.computeDirection(0)
	}
	sq, _ := s.v.dot(s.v.s(s.PairCount-1), s.Direction)
	return s.computeDirection(s.round(sq))
}

// computeDirection is the two-loop recursion (Nocedal & Wright, Algorithm 7.4) in place, from the direction -g to -H·g.
// Its argument is s·(-g) of the newest pair. One pass over memory computes the update by a pair and the dot product for
// the next.
func (s *step) computeDirection(dot float64) Ask {
	s.Recursions++
	n, ro, alpha := s.PairCount, s.v.ros, s.v.alphas
	if n == 0 {
		slope, most := s.v.scale(s.H.Value)
		s.slope, s.maxDirection = s.round(slope), most
		return s.move()
	}
	for i := n - 1; i > 0; i-- {
		alpha[i] = s.round(dot * ro[i])
		dot, _ = s.v.axpy(-alpha[i], s.v.y(i), s.v.s(i-1))
		dot = s.round(dot)
	}
	alpha[0] = s.round(dot * ro[0])
	dot = s.round(s.v.axpyScale(-alpha[0], s.v.y(0), s.H.Value))
	for i := range n {
		beta := s.round(dot * ro[i])
		next := s.Kept
		if i < n-1 {
			next = s.v.y(i + 1)
		}
		dot, s.maxDirection = s.v.axpy(s.round(alpha[i]-beta), s.v.s(i), next)
		dot = s.round(dot)
	}
	s.slope = dot
	return s.move()
}

// move moves the parameters along the direction, or begins a line search.
func (s *step) move() Ask {
	s.PrevLoss = s.Loss
	s.T = s.LR
	if s.Iterations == 1 {
		shorter := s.min(Number{1, Float}, s.tensor(1/s.gradNorm1))
		s.T = s.mul(shorter, s.LR)
	}
	if s.slope > s.round(-s.ToleranceChange) {
		return Done
	}
	if s.overflows(s.T) {
		s.T = Number{}
		return Overflow
	}
	if s.StrongWolfe != 0 {
		return s.beginSearch()
	}
	s.v.move(s.T.Value)
	if s.iter == s.MaxIter {
		return Done
	}
	s.Phase = phaseMoved
	return Evaluate
}

// endIteration counts the iteration's evaluations, and ends the step if one of torch's conditions holds.
func (s *step) endIteration(evals int) Ask {
	s.evals += evals
	s.Evaluations += evals
	switch {
	case s.iter == s.MaxIter,
		s.evals >= s.MaxEval,
		s.maxGrad <= s.round(s.ToleranceGrad),
		s.abs(s.mul(s.tensor(s.maxDirection), s.T)).Value <= s.round(s.ToleranceChange),
		math.Abs(s.Loss-s.PrevLoss) < s.ToleranceChange:
		return Done
	}
	return s.beginIteration()
}
