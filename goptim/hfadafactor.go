package goptim

import (
	"fmt"
	"math"
	"sync"

	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
	"github.com/goptim/goptim/goptim/internal/kernel/reduce"
	"github.com/goptim/goptim/internal/steps"
)

// hfAdafactorOptions are the hyperparameters of Adafactor (Shazeer & Stern, arXiv:1804.04235) in the version of Hugging
// Face transformers. They are for bindings; Go programs use Adafactor.
type hfAdafactorOptions struct {
	LR             float64    `torch:"lr,null"` // only without RelativeStep
	Eps            [2]float64 `torch:"eps"`     // the first is added to squared gradients; the second is the smallest scale of a parameter
	ClipThreshold  float64    `torch:"clip_threshold"`
	DecayRate      float64    `torch:"decay_rate"`
	Beta1          float64    `torch:"beta1,null"` // decay of the average of updates; null for no average
	WeightDecay    float64    `torch:"weight_decay"`
	ScaleParameter bool       `torch:"scale_parameter"`
	RelativeStep   bool       `torch:"relative_step"`
	WarmupInit     bool       `torch:"warmup_init"`

	averages bool // whether there is an exp_avg, which decays by Beta1
}

var _ = factoredClass(class[hfAdafactorOptions]{
	name:    "HFAdafactor",
	integer: true,
	states: []state{
		{key: "exp_avg_sq_row", of: steps.OfFlatRows, narrow: "float32"}, {key: "exp_avg_sq_col", of: steps.OfFlatCols, narrow: "float32"},
		{key: "exp_avg_sq", of: steps.OfVector, narrow: "float32"},
		hfExpAvg:           {key: "exp_avg", word: hasBeta1, narrow: "float32"},
		engine.MasterState: reserved,
		hfRMS:              {key: "RMS", scalar: true, given: true}, // a new tensor at every step
	},
}, stepHFAdafactor, orderOfNorms, hasBeta1)

// hasBeta1 is the name of a word of a call: whether beta1 is not None.
const hasBeta1 = "has_beta1"

// The states after those of a matrix or vector.
const (
	hfExpAvg = ofVector + 1
	hfRMS    = engine.MasterState + 1
)

// stepHFAdafactor steps groups one after the other. Like transformers, it does not check the options. It does not
// increment the step count.
func stepHFAdafactor(options []hfAdafactorOptions, extra [][]float64, c steps.Call) error {
	if len(options) > 1 && !c.OnlyCheck { // check all groups before the first write
		check := c
		check.OnlyCheck = true
		if err := stepHFAdafactor(options, extra, check); err != nil {
			return err
		}
	}
	g := c.Groups
	for i := range options {
		o := &options[i]
		o.averages = extra[i][1] != 0
		f, err := factoringsOf(c, extra[i])
		if err == nil {
			err = o.step(g, f, c.OnlyCheck)
		}
		if err != nil {
			return fmt.Errorf("goptim: hf.Adafactor: %w", err)
		}
		g = g.After()
	}
	return nil
}

// step steps one group. On an error, nothing has changed.
func (o *hfAdafactorOptions) step(g *steps.Group, f factorings, onlyCheck bool) error {
	layout := engine.LayoutOf(true)
	layout.Narrow = true
	layout.Set(hfRMS, engine.Scalar)
	if o.averages {
		layout.Set(hfExpAvg, engine.Column)
	}
	rows, err := rowsOf(g, "HFAdafactor", layout)
	if err != nil {
		return err
	}
	for i := range rows {
		if err := checkFactored(&rows[i]); err != nil {
			return fmt.Errorf("row %d: %w: %w", i, err, ErrParam)
		}
		if t := rows[i].Steps(); !(t >= 0) {
			return fmt.Errorf("row %d: step %v: %w", i, t, ErrParam)
		}
	}
	f.do = func(i int) {
		switch r := &rows[i]; {
		case r.Narrow() || !r.Uniform():
			updateHFAdafactorMixed(o, r, &f, &hfAdafactor32, g.Seed)
		case r.DType() == engine.Float32:
			updateHFAdafactor(o, r, &f, &hfAdafactor32)
		default:
			updateHFAdafactor(o, r, &f, &hfAdafactor64)
		}
	}
	f.more = func(i int) {
		r := &rows[i]
		f.ranges.Write(r.State[hfRMS], r.StateType[hfRMS].Size())
		if o.averages {
			f.ranges.Write(r.State[hfExpAvg], int(r.N)*r.StateType[hfExpAvg].Size())
		}
	}
	if err := o.checkScalars(rows, &f); err != nil || onlyCheck {
		return err
	}
	return f.each(rows)
}

// checkScalars computes the scalars of all rows and returns their first error.
func (o *hfAdafactorOptions) checkScalars(rows []engine.Row, f *factorings) error {
	var log scalarLog
	c := stepContext{log: &log, pow: f.pow}
	for i := range rows {
		c.row, c.i, c.t = &rows[i], i, rows[i].Steps()+1
		if z := c.pow(c.t, o.DecayRate); math.IsInf(z, 0) && !math.IsInf(o.DecayRate, 0) {
			c.fail("OverflowError", "%v to the power of %v is too large", c.t, o.DecayRate)
		} else {
			c.narrow(1 - (1 - z))
		}
		if o.averages {
			c.narrow(1 - o.Beta1)
		}
		if o.WeightDecay != 0 && log.err == nil {
			c.narrow(o.decayOf(&c, f))
		}
	}
	return log.err
}

// decayOf returns the factor of the weight decay if it is a number. It returns 0 if the factor is a tensor because it is
// relative to the root mean square of the parameter.
func (o *hfAdafactorOptions) decayOf(c *stepContext, f *factorings) float64 {
	if !o.ScaleParameter {
		return -o.WeightDecay * o.rate(c.t)
	}
	decay := -o.WeightDecay * float64(o.Eps[1]*o.rate(c.t))
	if c.row.Arithmetic() == engine.Float32 && math.Abs(decay) > math.MaxFloat32 {
		s := takeScratch[float32](&hfAdafactor32.scratches)
		defer s.giveBack(&hfAdafactor32.scratches)
		n, p := int(c.row.N), &s.operands
		*p = engine.Stored(c.row)
		if normOfParam(s, p, n, f.order)/float32(f.pow(float64(n), 0.5)) > float32(o.Eps[1]) {
			return 0
		}
	}
	return decay
}

type hfAdafactorKernels[T Float] struct {
	squares, moment, factor, row, vector, step kernel.Func[kernel.HFAdafactor, T]
	scratches                                  sync.Pool
}

var (
	hfAdafactor32 = hfAdafactorKernels[float32]{
		squares: f32.HFAdafactorSquares, moment: f32.HFAdafactorMoment, factor: f32.HFAdafactorFactor,
		row: f32.HFAdafactorRow, vector: f32.HFAdafactorVector, step: f32.HFAdafactorStep,
	}
	hfAdafactor64 = hfAdafactorKernels[float64]{
		squares: f64.HFAdafactorSquares, moment: f64.HFAdafactorMoment, factor: f64.HFAdafactorFactor,
		row: f64.HFAdafactorRow, vector: f64.HFAdafactorVector, step: f64.HFAdafactorStep,
	}
)

func updateHFAdafactor[T Float](o *hfAdafactorOptions, r *engine.Row, f *factorings, k *hfAdafactorKernels[T]) {
	n, shape := int(r.N), matricesOf(r)
	p, g := elements[T](r.Param, n), elements[T](r.Grad, n)
	s := takeScratch[T](&k.scratches)
	defer s.giveBack(&k.scratches)
	norm := reduce.Norm[T]{Order: f.order}
	count := T(f.pow(float64(n), 0.5))
	h := hfScalars(o, r, f, s, norm.Of(p)/count)
	s.begin(nil, n, f.order)
	if shape.rows == 0 {
		kernel.Apply(k.vector, h, s.update, g, [4][]T{elements[T](r.State[ofVector], n)})
	} else {
		row, col := elements[T](r.State[ofRows], shape.batch*shape.rows), elements[T](r.State[ofCols], shape.batch*shape.cols)
		k.update(h, shape, s.update, g, row, col, f.meanThreadsOf(shape), s)
	}
	h.Clip = hfClip(o, s, count)
	var expAvg []T
	if o.averages {
		expAvg = elements[T](r.State[hfExpAvg], n)
	}
	kernel.Apply(k.step, h, p, s.update, [4][]T{expAvg})
}

// updateHFAdafactorMixed is updateHFAdafactor for a parameter or states of 16 bits. The gradient and the states of a few matrices are
// widened, the gradient into the memory of the update. All sums are those of float32 elements.
func updateHFAdafactorMixed(o *hfAdafactorOptions, r *engine.Row, f *factorings, k *hfAdafactorKernels[float32], seed uint64) {
	n, shape := int(r.N), matricesOf(r)
	s := takeScratch[float32](&k.scratches)
	defer s.giveBack(&k.scratches)
	grad, stored := engine.OperandOf(r.Grad, r.GradType), &s.operands
	*stored = engine.Stored(r)
	count := float32(f.pow(float64(n), 0.5))
	h := hfScalars(o, r, f, s, normOfParam(s, stored, n, f.order)/count)
	s.begin(nil, n, f.order)
	if shape.rows == 0 {
		*stored = kernel.Operands{Param: engine.OperandOf(address(s.update), engine.Float32), Grad: grad}
		stored.State[0] = engine.OperandOf(r.State[ofVector], r.StateType[ofVector])
		kernel.ApplyMixed(k.vector, h, stored, n)
	} else {
		row, col := engine.OperandOf(r.State[ofRows], r.StateType[ofRows]), engine.OperandOf(r.State[ofCols], r.StateType[ofCols])
		updateHFMatricesMixed(k, h, shape, s.update, &grad, &row, &col, f.meanThreadsOf(shape), s)
	}
	h.Clip = hfClip(o, s, count)
	*stored = engine.Stored(r)
	stored.Grad, stored.Noise = engine.OperandOf(address(s.update), engine.Float32), r.MatrixNoise(seed, r.Steps()+1)
	if o.averages {
		stored.State[0] = engine.OperandOf(r.State[hfExpAvg], r.StateType[hfExpAvg])
	}
	kernel.ApplyMixed(k.step, h, stored, n)
}

// updateHFMatricesMixed is update for buffers in any format.
func updateHFMatricesMixed(
	k *hfAdafactorKernels[float32], h *kernel.HFAdafactor, shape matrices, u []float32, g, row, col *kernel.Operand, meanThreads int,
	s *scratch[float32],
) {
	eachFewMatrices(shape, u, g, row, col, s, func(few matrices, u, row, col []float32) {
		k.update(h, few, u, u, row, col, meanThreads, s)
	})
}

// hfScalars writes the root mean square of the parameter, and returns the scalars of the step.
func hfScalars[T Float](o *hfAdafactorOptions, r *engine.Row, f *factorings, s *scratch[T], rms T) *kernel.HFAdafactor {
	t := r.Steps() + 1
	r.SetNumber(hfRMS, float64(rms))
	lr, decay := o.rates(t, float64(rms), float64(T(o.Eps[1])), func(x float64) float64 { return float64(T(x)) })
	beta2 := 1 - f.pow(t, o.DecayRate)
	h := &s.hfAdafactor
	*h = kernel.HFAdafactor{
		Eps1: o.Eps[0], Beta2: beta2, C2: 1 - beta2, LR: lr, Decays: kernel.Flag(o.WeightDecay != 0), Decay: decay,
		Beta1: o.Beta1, C1: 1 - o.Beta1,
	}
	return h
}

// hfClip returns the clipping factor of the unclipped update.
func hfClip[T Float](o *hfAdafactorOptions, s *scratch[T], count T) float64 {
	clip := s.norm.Of(s.update) / count / T(o.ClipThreshold)
	if clip < 1 {
		clip = 1
	}
	return float64(clip)
}

// rates returns the learning rate and the factor of the weight decay. If the scale of the parameter is a tensor, torch
// rounds every product.
func (o *hfAdafactorOptions) rates(t, rms, leastScale float64, round func(float64) float64) (lr, decay float64) {
	lr = o.rate(t)
	switch {
	case !o.ScaleParameter:
		lr = 1 * lr
	case rms > leastScale:
		lr = round(rms * round(lr))
		return lr, round(round(-o.WeightDecay) * lr)
	default:
		lr = o.Eps[1] * lr
	}
	return lr, -o.WeightDecay * lr
}

// rate returns the learning rate before it is scaled.
func (o *hfAdafactorOptions) rate(t float64) float64 {
	if !o.RelativeStep {
		return o.LR
	}
	least := 1e-2
	if o.WarmupInit {
		least = 1e-6 * t
	}
	return math.Min(least, 1/math.Sqrt(t))
}

// update writes the unclipped update of a batch of matrices to u, which may be the gradient, and updates exp_avg_sq_row and exp_avg_sq_col.
// threads is the number of threads with which torch computes a mean that is the only one.
func (k *hfAdafactorKernels[T]) update(h *kernel.HFAdafactor, shape matrices, u, g, row, col []T, threads int, s *scratch[T]) {
	rows, cols := shape.rows, shape.cols
	rowThreads, colThreads := 1, 1
	if rows == 1 {
		rowThreads = threads
	}
	if cols == 1 {
		colThreads = threads
	}
	squares := grown(&s.product, max(rows, cols))
	rowMeans, colMeans := grown(&s.rows, rows), grown(&s.cols, cols)
	size, updates := rows*cols, u
	for b := range shape.batch {
		u, g := updates[b*size:][:size], g[b*size:][:size]
		row, col := row[b*rows:][:rows], col[b*cols:][:cols]
		if cols == 1 {
			kernel.Apply(k.squares, h, rowMeans, g, [4][]T{})
			colMeans[0] = reduce.Mean(rowMeans, colThreads, s.norm.Order)
		} else {
			s.columns.Order = s.norm.Order
			s.columns.Begin(rows, cols)
			squares := squares[:cols]
			for i := range rows {
				kernel.Apply(k.squares, h, squares, g[i*cols:], [4][]T{})
				rowMeans[i] = reduce.Mean(squares, rowThreads, s.norm.Order)
				s.columns.Add(i, squares)
			}
			s.columns.Sums(colMeans)
			for j := range colMeans {
				colMeans[j] /= T(rows)
			}
		}
		kernel.Apply(k.moment, h, row, rowMeans, [4][]T{})
		kernel.Apply(k.moment, h, col, colMeans, [4][]T{})
		h.Mean = float64(reduce.Mean(row, threads, s.norm.Order))
		kernel.Apply(k.factor, h, rowMeans, row, [4][]T{})
		h.Mean = 1
		kernel.Apply(k.factor, h, colMeans, col, [4][]T{})
		for i, x := range rowMeans {
			h.Row = float64(x)
			kernel.Apply(k.row, h, u[i*cols:][:cols], g[i*cols:], [4][]T{colMeans})
			s.advance(cols)
		}
	}
}
