package goptim

import "math"

const (
	// The constants of the strong Wolfe conditions: sufficient decrease, and curvature.
	wolfeC1 = 1e-4
	wolfeC2 = 0.9
	// smallestBracket ends a search, by the change of an element within it. It is not ToleranceChange, in torch neither.
	smallestBracket = 1e-9
)

// A lineSearch looks along a direction for a step length that meets the strong Wolfe conditions: Nocedal & Wright,
// "Numerical Optimization", Algorithms 3.5 (bracketing) and 3.6 (zoom), as minFunc and torch have them.
type lineSearch struct {
	first         point    // where it began
	prev          point    // bracketing: the point before
	bracket       [2]point // zoom
	low           int      // the end of the bracket with the lower loss
	iter, maxIter int
	evals         int
	noProgress    int // flag: the last point was close to an end of the bracket
	found         int // flag: the lowest point meets the conditions
}

// A point is what is known of the loss at a step length.
type point struct {
	t         LBFGSNumber
	loss, gtd float64
	most      float64 // the largest |g|
	source    int     // of g. A gradient that may be needed is saved before the next evaluation
}

// begin starts the line search. It needs the gradients at two points, the lowest one and the last: of the bracket's ends,
// the higher one is never taken.
func (r *lbfgsRun) begin() LBFGSAsk {
	first := point{LBFGSNumber{0, lbfgsInt}, r.Loss, r.gtd, r.most, fromKept}
	r.search = lineSearch{first: first, prev: first, iter: -1, maxIter: r.MaxEval - r.evals}
	if r.MaxSearch > 0 {
		r.search.maxIter = r.MaxSearch
	}
	r.v.begin(r.T.Value)
	r.Phase = atBracketing
	return LBFGSEvaluate
}

// evaluated is the point whose loss and gradients the caller has given.
func (r *lbfgsRun) evaluated() point {
	s := &r.search
	s.iter++
	s.evals++
	r.source = fromSegments
	gtd, most := r.v.dot(gradients, r.Direction)
	return point{r.T, r.Loss, r.round(gtd), most, fromSegments}
}

// evaluate goes to step length t from where the search began.
func (r *lbfgsRun) evaluate(t LBFGSNumber, phase int) LBFGSAsk {
	if r.overflows(t) {
		return r.fail(LBFGSOverflow)
	}
	r.T = t
	r.v.moveFromStart(t.Value)
	r.Phase = phase
	return LBFGSEvaluate
}

func (r *lbfgsRun) fail(why LBFGSAsk) LBFGSAsk {
	r.v.restore()
	r.T = LBFGSNumber{}
	return why
}

// tooHigh reports whether the loss at a point breaks the first condition. A NaN does not.
func (r *lbfgsRun) tooHigh(p point) bool {
	first := &r.search.first
	line := r.mul(r.mul(LBFGSNumber{wolfeC1, lbfgsFloat}, p.t), r.tensor(first.gtd))
	return r.less(r.add(LBFGSNumber{first.loss, lbfgsFloat}, line), LBFGSNumber{p.loss, lbfgsFloat})
}

func (r *lbfgsRun) flatEnough(p point) bool {
	return math.Abs(p.gtd) <= r.round(r.round(-wolfeC2)*r.search.first.gtd)
}

// bracketed is Algorithm 3.5 behind an evaluation.
func (r *lbfgsRun) bracketed() LBFGSAsk {
	s := &r.search
	now := r.evaluated()
	if s.iter >= s.maxIter {
		s.bracket = [2]point{s.first, now}
		return r.beginZoom()
	}
	switch {
	case r.tooHigh(now) || (s.iter > 1 && now.loss >= s.prev.loss):
		s.bracket = [2]point{s.prev, now}
	case r.flatEnough(now):
		if math.IsNaN(now.loss) { // torch looks for a second point then
			return r.fail(LBFGSNaN)
		}
		s.bracket, s.found = [2]point{now, now}, 1
	case now.gtd >= 0:
		s.bracket = [2]point{s.prev, now}
	default:
		bounds := [2]LBFGSNumber{
			r.add(now.t, r.mul(LBFGSNumber{0.01, lbfgsFloat}, r.sub(now.t, s.prev.t))),
			r.mul(now.t, LBFGSNumber{10, lbfgsInt}),
		}
		t, ok := r.interpolate(&s.prev, &now, bounds)
		if !ok {
			return r.fail(LBFGSEmptyBracket)
		}
		s.prev = r.saved(now)
		return r.evaluate(t, atBracketing)
	}
	return r.beginZoom()
}

// saved keeps the gradient of a point that was evaluated last.
func (r *lbfgsRun) saved(p point) point {
	if p.source == fromSegments {
		r.v.save()
		p.source = fromLow
	}
	return p
}

func (r *lbfgsRun) beginZoom() LBFGSAsk {
	r.search.findLow()
	return r.zoom()
}

func (s *lineSearch) findLow() {
	s.low = 1
	if s.bracket[0].loss <= s.bracket[1].loss {
		s.low = 0
	}
}

// zoom is Algorithm 3.6 before an evaluation, or the end of the search.
func (r *lbfgsRun) zoom() LBFGSAsk {
	s := &r.search
	a, b := &s.bracket[0], &s.bracket[1]
	if s.found != 0 || s.iter >= s.maxIter ||
		r.less(r.mul(r.abs(r.sub(b.t, a.t)), r.tensor(r.dMost)), LBFGSNumber{smallestBracket, lbfgsFloat}) {
		return r.finish()
	}
	bounds := [2]LBFGSNumber{a.t, b.t}
	if !r.lessEqual(a.t, b.t) {
		bounds = [2]LBFGSNumber{b.t, a.t}
	}
	t, ok := r.interpolate(a, b, bounds)
	if !ok {
		return r.fail(LBFGSEmptyBracket)
	}
	t = r.inside(t)
	s.bracket[s.low] = r.saved(s.bracket[s.low])
	return r.evaluate(t, atZooming)
}

// inside moves a step length that is close to an end of the bracket for the second time, or outside, a tenth of the
// bracket away from that end.
func (r *lbfgsRun) inside(t LBFGSNumber) LBFGSNumber {
	s := &r.search
	hi, lo := r.max(s.bracket[0].t, s.bracket[1].t), r.min(s.bracket[0].t, s.bracket[1].t)
	eps := r.mul(LBFGSNumber{0.1, lbfgsFloat}, r.sub(hi, lo))
	if !r.less(r.min(r.sub(hi, t), r.sub(t, lo)), eps) {
		s.noProgress = 0
		return t
	}
	if s.noProgress == 0 && !r.lessEqual(hi, t) && !r.lessEqual(t, lo) {
		s.noProgress = 1
		return t
	}
	s.noProgress = 0
	if r.less(r.abs(r.sub(t, hi)), r.abs(r.sub(t, lo))) {
		return r.sub(hi, eps)
	}
	return r.add(lo, eps)
}

// zoomed is Algorithm 3.6 behind an evaluation.
func (r *lbfgsRun) zoomed() LBFGSAsk {
	s := &r.search
	now := r.evaluated()
	low, high := &s.bracket[s.low], &s.bracket[1-s.low]
	if r.tooHigh(now) || now.loss >= low.loss {
		*high = now
		s.findLow()
		return r.zoom()
	}
	if r.flatEnough(now) {
		s.found = 1
	} else if r.mul(r.tensor(now.gtd), r.sub(high.t, low.t)).Value >= 0 {
		*high = *low
	}
	*low = now
	return r.zoom()
}

// finish moves to the lowest point.
func (r *lbfgsRun) finish() LBFGSAsk {
	p := &r.search.bracket[r.search.low]
	if r.overflows(p.t) {
		return r.fail(LBFGSOverflow)
	}
	r.T, r.Loss, r.most, r.source = p.t, p.loss, p.most, p.source
	r.v.moveFromStart(p.t.Value)
	return r.conclude(r.search.evals)
}

// interpolate finds where a cubic through two points, with their slopes, is least within bounds: Nocedal & Wright,
// equation 3.59. It is not ok if the points are one.
func (r *lbfgsRun) interpolate(a, b *point, bounds [2]LBFGSNumber) (t LBFGSNumber, ok bool) {
	between := r.sub(a.t, b.t)
	if between.Kind != lbfgsTensor && between.Value == 0 { // where Python raises ZeroDivisionError
		return t, false
	}
	ga, gb := r.tensor(a.gtd), r.tensor(b.gtd)
	d1 := r.sub(r.add(ga, gb), r.div(LBFGSNumber{3 * (a.loss - b.loss), lbfgsFloat}, between))
	square := r.sub(r.mul(d1, d1), r.mul(ga, gb))
	if !(square.Value >= 0) {
		return r.div(r.add(bounds[0], bounds[1]), LBFGSNumber{2, lbfgsFloat}), true
	}
	d2 := r.tensor(math.Sqrt(square.Value))
	if !r.lessEqual(a.t, b.t) {
		a, b, ga, gb = b, a, gb, ga
	}
	span := r.add(r.sub(gb, ga), r.mul(LBFGSNumber{2, lbfgsInt}, d2))
	least := r.sub(b.t, r.mul(r.sub(b.t, a.t), r.div(r.sub(r.add(gb, d2), d1), span)))
	return r.min(r.max(least, bounds[0]), bounds[1]), true
}

// numbers is Python's and torch's arithmetic on numbers and tensors of one number: a result is a tensor, and rounded, if
// one of its operands is; then all are compared as rounded.
type numbers struct{ single bool }

func (a numbers) round(x float64) float64 {
	if a.single {
		return float64(float32(x))
	}
	return x
}

func (a numbers) tensor(x float64) LBFGSNumber { return LBFGSNumber{a.round(x), lbfgsTensor} }

// meet gives the kind of a result and the operands as it sees them.
func (a numbers) meet(x, y LBFGSNumber) (kind int, u, v float64) {
	kind = max(x.Kind, y.Kind)
	if kind == lbfgsTensor {
		return kind, a.round(x.Value), a.round(y.Value)
	}
	return kind, x.Value, y.Value
}

func (a numbers) of(kind int, x float64) LBFGSNumber {
	if kind == lbfgsTensor {
		x = a.round(x)
	}
	return LBFGSNumber{x, kind}
}

func (a numbers) add(x, y LBFGSNumber) LBFGSNumber {
	kind, u, v := a.meet(x, y)
	return a.of(kind, u+v)
}

func (a numbers) sub(x, y LBFGSNumber) LBFGSNumber {
	kind, u, v := a.meet(x, y)
	return a.of(kind, u-v)
}

func (a numbers) mul(x, y LBFGSNumber) LBFGSNumber {
	kind, u, v := a.meet(x, y)
	return a.of(kind, float64(u*v)) // the conversion forbids Go to fuse
}

// div multiplies a number by the reciprocal of a tensor, as torch does.
func (a numbers) div(x, y LBFGSNumber) LBFGSNumber {
	kind, u, v := a.meet(x, y)
	if y.Kind == lbfgsTensor && x.Kind != lbfgsTensor {
		return a.of(kind, u*a.round(1/v))
	}
	return a.of(max(kind, lbfgsFloat), u/v)
}

func (a numbers) abs(x LBFGSNumber) LBFGSNumber { return LBFGSNumber{math.Abs(x.Value), x.Kind} }

func (a numbers) less(x, y LBFGSNumber) bool {
	_, u, v := a.meet(x, y)
	return u < v
}

func (a numbers) lessEqual(x, y LBFGSNumber) bool {
	_, u, v := a.meet(x, y)
	return u <= v
}

// min and max are Python's, which give the first of two that do not differ, or cannot be compared.
func (a numbers) min(x, y LBFGSNumber) LBFGSNumber {
	if a.less(y, x) {
		return y
	}
	return x
}

func (a numbers) max(x, y LBFGSNumber) LBFGSNumber {
	if a.less(x, y) {
		return y
	}
	return x
}

// overflows reports whether torch refuses a number as the factor of a sum.
func (a numbers) overflows(x LBFGSNumber) bool {
	return a.single && !math.IsInf(x.Value, 0) && math.Abs(x.Value) > math.MaxFloat32
}
