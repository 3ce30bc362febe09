package lbfgs

import "math"

const (
	// The constants of the strong Wolfe conditions: sufficient decrease and curvature.
	wolfeC1 = 1e-4
	wolfeC2 = 0.9
	// minBracket ends a search when no element changes by more within the bracket. As in torch it is not ToleranceChange.
	minBracket = 1e-9
)

// A lineSearch looks for a step length that meets the strong Wolfe conditions: Nocedal & Wright, "Numerical Optimization",
// Algorithms 3.5 (bracketing) and 3.6 (zoom), as in torch and minFunc. It stores the gradients of two points only, the
// lowest one and the last: the one at the higher end of the bracket is never needed.
type lineSearch struct {
	first         point    // where the search began
	prev          point    // bracketing: the previous point
	ends          [2]point // zoom: of the bracket
	low           int      // zoom: which end has the lower loss
	iter, maxIter int
	evals         int
	noProgress    int // flag: the last point was close to an end of the bracket
	found         int // flag: the lowest point meets the conditions
}

// A point is a step length and what is known of the loss there.
type point struct {
	t           Number
	loss, slope float64
	maxGrad     float64
	source      int // of the gradient, which is copied to Low before the next evaluation if it may be needed
}

func (s *step) beginSearch() Ask {
	first := point{Number{0, Int}, s.Loss, s.slope, s.maxGrad, inKept}
	s.search = lineSearch{first: first, prev: first, iter: -1, maxIter: s.MaxEval - s.evals}
	if s.MaxSearch > 0 {
		s.search.maxIter = s.MaxSearch
	}
	s.v.saveStartAndMove(s.T.Value)
	s.Phase = phaseBracket
	return Evaluate
}

// evaluated returns the point that the caller has evaluated.
func (s *step) evaluated() point {
	s.search.iter++
	s.search.evals++
	s.source = inSegments
	slope, maxGrad := s.v.dot(gradients, s.Direction)
	return point{s.T, s.Loss, s.round(slope), maxGrad, inSegments}
}

// evaluateAt moves to step length t, and asks for an evaluation there.
func (s *step) evaluateAt(t Number, phase int) Ask {
	if s.overflows(t) {
		return s.failSearch(Overflow)
	}
	s.T = t
	s.v.moveFromStart(t.Value)
	s.Phase = phase
	return Evaluate
}

// failSearch moves back to where the search began.
func (s *step) failSearch(why Ask) Ask {
	s.v.restoreStart()
	s.T = Number{}
	return why
}

// violatesDecrease reports whether a point violates the sufficient decrease condition. A loss that is NaN does not.
func (s *step) violatesDecrease(p point) bool {
	first := &s.search.first
	line := s.mul(s.mul(Number{wolfeC1, Float}, p.t), s.tensor(first.slope))
	return s.less(s.add(Number{first.loss, Float}, line), Number{p.loss, Float})
}

func (s *step) meetsCurvature(p point) bool {
	return math.Abs(p.slope) <= s.round(s.round(-wolfeC2)*s.search.first.slope)
}

// bracket continues Algorithm 3.5 after an evaluation.
func (s *step) bracket() Ask {
	l := &s.search
	p := s.evaluated()
	if l.iter >= l.maxIter {
		l.ends = [2]point{l.first, p}
		return s.beginZoom()
	}
	switch {
	case s.violatesDecrease(p) || (l.iter > 1 && p.loss >= l.prev.loss):
		l.ends = [2]point{l.prev, p}
	case s.meetsCurvature(p):
		if math.IsNaN(p.loss) { // torch raises IndexError
			return s.failSearch(NaNLoss)
		}
		l.ends, l.found = [2]point{p, p}, 1
	case p.slope >= 0:
		l.ends = [2]point{l.prev, p}
	default:
		bounds := [2]Number{
			s.add(p.t, s.mul(Number{0.01, Float}, s.sub(p.t, l.prev.t))),
			s.mul(p.t, Number{10, Int}),
		}
		t, ok := s.interpolate(&l.prev, &p, bounds)
		if !ok {
			return s.failSearch(EmptyBracket)
		}
		l.prev = s.withSavedGradient(p)
		return s.evaluateAt(t, phaseBracket)
	}
	return s.beginZoom()
}

// withSavedGradient copies the gradient of the point that was evaluated last to Low.
func (s *step) withSavedGradient(p point) point {
	if p.source == inSegments {
		s.v.saveGradient()
		p.source = inLow
	}
	return p
}

func (s *step) beginZoom() Ask {
	s.search.setLow()
	return s.narrow()
}

func (l *lineSearch) setLow() {
	l.low = 1
	if l.ends[0].loss <= l.ends[1].loss {
		l.low = 0
	}
}

// narrow asks for an evaluation within the bracket, or ends the search: an iteration of Algorithm 3.6 up to its evaluation.
func (s *step) narrow() Ask {
	l := &s.search
	a, b := &l.ends[0], &l.ends[1]
	if l.found != 0 || l.iter >= l.maxIter ||
		s.less(s.mul(s.abs(s.sub(b.t, a.t)), s.tensor(s.maxDirection)), Number{minBracket, Float}) {
		return s.endSearch()
	}
	bounds := [2]Number{a.t, b.t}
	if !s.lessEqual(a.t, b.t) {
		bounds = [2]Number{b.t, a.t}
	}
	t, ok := s.interpolate(a, b, bounds)
	if !ok {
		return s.failSearch(EmptyBracket)
	}
	t = s.safeguard(t)
	l.ends[l.low] = s.withSavedGradient(l.ends[l.low])
	return s.evaluateAt(t, phaseZoom)
}

// safeguard moves a step length away from an end of the bracket, by a tenth of the bracket, if it is close to an end for
// the second time in a row, or beyond it.
func (s *step) safeguard(t Number) Number {
	l := &s.search
	hi, lo := s.max(l.ends[0].t, l.ends[1].t), s.min(l.ends[0].t, l.ends[1].t)
	eps := s.mul(Number{0.1, Float}, s.sub(hi, lo))
	if !s.less(s.min(s.sub(hi, t), s.sub(t, lo)), eps) {
		l.noProgress = 0
		return t
	}
	if l.noProgress == 0 && !s.lessEqual(hi, t) && !s.lessEqual(t, lo) {
		l.noProgress = 1
		return t
	}
	l.noProgress = 0
	if s.less(s.abs(s.sub(t, hi)), s.abs(s.sub(t, lo))) {
		return s.sub(hi, eps)
	}
	return s.add(lo, eps)
}

// zoom continues Algorithm 3.6 after an evaluation.
func (s *step) zoom() Ask {
	l := &s.search
	p := s.evaluated()
	low, high := &l.ends[l.low], &l.ends[1-l.low]
	if s.violatesDecrease(p) || p.loss >= low.loss {
		*high = p
		l.setLow()
		return s.narrow()
	}
	if s.meetsCurvature(p) {
		l.found = 1
	} else if s.mul(s.tensor(p.slope), s.sub(high.t, low.t)).Value >= 0 {
		*high = *low
	}
	*low = p
	return s.narrow()
}

// endSearch moves to the lowest point.
func (s *step) endSearch() Ask {
	p := &s.search.ends[s.search.low]
	if s.overflows(p.t) {
		return s.failSearch(Overflow)
	}
	s.T, s.Loss, s.maxGrad, s.source = p.t, p.loss, p.maxGrad, p.source
	s.v.moveFromStart(p.t.Value)
	return s.endIteration(s.search.evals)
}

// interpolate minimizes the cubic through two points, with their slopes, within bounds: Nocedal & Wright, equation 3.59.
// It is not ok if both points have the same step length, where torch divides by zero.
func (s *step) interpolate(a, b *point, bounds [2]Number) (t Number, ok bool) {
	between := s.sub(a.t, b.t)
	if between.Kind != Tensor && between.Value == 0 { // a tensor of zero gives infinity in torch
		return t, false
	}
	ga, gb := s.tensor(a.slope), s.tensor(b.slope)
	d1 := s.sub(s.add(ga, gb), s.div(Number{3 * (a.loss - b.loss), Float}, between))
	square := s.sub(s.mul(d1, d1), s.mul(ga, gb))
	if !(square.Value >= 0) {
		return s.div(s.add(bounds[0], bounds[1]), Number{2, Float}), true
	}
	d2 := s.tensor(math.Sqrt(square.Value))
	if !s.lessEqual(a.t, b.t) {
		a, b, ga, gb = b, a, gb, ga
	}
	span := s.add(s.sub(gb, ga), s.mul(Number{2, Int}, d2))
	least := s.sub(b.t, s.mul(s.sub(b.t, a.t), s.div(s.sub(s.add(gb, d2), d1), span)))
	return s.min(s.max(least, bounds[0]), bounds[1]), true
}
