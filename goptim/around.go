package goptim

import (
	"fmt"
	"sync"
	"unsafe"

	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
	"github.com/goptim/goptim/goptim/internal/kernel/reduce"
	"github.com/goptim/goptim/internal/steps"
)

// An around is a steps.Around for a pass: what happens to each block of elements before and after its update, while the block is
// in cache. The results are those of separate passes over all rows.
type around struct {
	on, scales, averages, clears bool
	factor                       kernel.Factor     // of the gradients
	weights                      [2]kernel.Average // of the parameters, for float32 and float64
	grads                        []engine.Row      // a row of one tensor for each gradient
	ranges                       engine.Ranges
}

// begin computes the norm, and sets what to do with each block. On is false if the rows depend on each other.
func (a *around) begin(rows []engine.Row, c *steps.Call) error {
	*a = around{grads: a.grads[:0], ranges: a.ranges}
	c.Around.Done = 0
	if err := a.check(rows, c.Around); err != nil {
		return err
	}
	flags := c.Around.Flags
	if flags&^steps.Scaled != 0 && !a.ranges.Apart(rows) {
		// A gradient that is read twice would be clipped twice, and a cleared one is written.
		a.ranges.Reset()
		a.ranges.AddClearedRows(rows)
		if a.ranges.Shared() {
			return nil
		}
	}
	a.factor.X = 1
	if flags&steps.Scaled != 0 {
		a.factor.X = c.Around.Coefficient
	}
	if flags&steps.Clip != 0 {
		if err := a.clip(rows, c); err != nil {
			return err
		}
	}
	a.scales = a.factor.X != 1
	a.averages, a.clears = flags&steps.Average != 0, flags&steps.Clear != 0
	a.weights[0].Weight = kernel.WeightOf[float32](c.Around.Weight)
	a.weights[1].Weight = kernel.WeightOf[float64](c.Around.Weight)
	a.on = true
	c.Around.Done = 1
	return nil
}

func (a *around) check(rows []engine.Row, c *steps.Around) error {
	if c.Order < 0 || c.Order >= int64(len(reduce.Orders)) {
		return fmt.Errorf("order is %d, expected 0 to %d: %w", c.Order, len(reduce.Orders)-1, ErrOption)
	}
	for i := range rows {
		r := &rows[i]
		like := r.ParamType == rows[0].ParamType || c.Flags&steps.Widen != 0 && r.Arithmetic() == rows[0].Arithmetic()
		if c.Flags&steps.Clip != 0 && !like {
			return fmt.Errorf("row %d is of %v, expected %v: %w", i, r.ParamType, rows[0].ParamType, ErrParam)
		}
		if err := r.CheckAverage(); c.Flags&steps.Average != 0 && err != nil {
			return fmt.Errorf("row %d: %w: %w", i, err, ErrParam)
		}
	}
	return nil
}

// clip computes the norm of the gradients and the coefficient that limits it.
func (a *around) clip(rows []engine.Row, c *steps.Call) (err error) {
	for i := range rows {
		r := &rows[i]
		a.grads = append(a.grads, engine.Row{N: r.N, Param: r.Grad, Types: engine.Types{ParamType: r.GradType}})
	}
	p := takeNorms(2, int(c.Around.Order), c.Around.Flags&steps.Widen != 0, c.Threads)
	defer p.put()
	c.Around.Norm, err = p.total(a.grads, c.Threads, c.Team)
	a.factor.X = p.coefficient(c.Around.Norm, c.Around.MaxNorm)
	return err
}

const (
	// block is the size in bytes of the part of a tensor that is processed at a time. A few of them are in the L1 cache.
	block = 1 << 13
	// The numbers of cache lines that are prefetched: of the average while the parameter is updated, and of the next block's
	// tensors while the average is. The CPU's prefetcher stops where a block ends.
	linesOfAverage, linesOfNext = 64, 16
)

// A buffer has a block of scaled gradients.
type buffer [block / 8]float64

var buffers = sync.Pool{New: func() any { return new(buffer) }}

// aroundKernels are the kernels of an around for one element type.
type aroundKernels[T kernel.Float] struct {
	weight  int // index of the weight
	product kernel.Func[kernel.Factor, T]
	average kernel.Func[kernel.Average, T]
}

var (
	around32 = aroundKernels[float32]{0, f32.Product, f32.AverageLerp}
	around64 = aroundKernels[float64]{1, f64.Product, f64.AverageLerp}
)

// updateAround updates elements lo to hi of a row in blocks.
func updateAround[S any, T kernel.Float](
	a *around, k aroundKernels[T], f kernel.Func[S, T], t *terms[S], r *engine.Row, lo, hi int, scaled *buffer,
) {
	n := block / int(unsafe.Sizeof(T(0)))
	for ; lo < hi; lo += n {
		end := min(lo+n, hi)
		streams := a.averages && end < hi
		if streams {
			r.PrefetchAverage(lo, linesOfAverage)
		}
		param, grad, states := engine.View[T](r, &t.layout, lo, end)
		g := grad
		if a.scales && !t.scaled {
			g = unsafe.Slice((*T)(unsafe.Pointer(scaled)), len(grad))
			kernel.Apply(k.product, &a.factor, g, grad, [4][]T{})
		}
		kernel.Apply(f, &t.scalars, param, g, states)
		if a.averages {
			if streams {
				r.PrefetchFrom(&t.layout, end, linesOfNext)
			}
			if average := engine.AverageOf[T](r, lo, end); average != nil {
				kernel.Apply(k.average, &a.weights[k.weight], average, param, [4][]T{})
			}
		}
		if a.clears {
			clear(grad)
		}
	}
}

// updateAroundMixed is updateAround for a row whose tensors are narrow, or differ in type. A scaled gradient is rounded.
func updateAroundMixed[S any](a *around, k *kernels[S], t *terms[S], r *engine.Row, lo, hi int, scaled *buffer) {
	const n = block / 4
	for ; lo < hi; lo += n {
		end := min(lo+n, hi)
		o := engine.Operands(r, &t.layout, lo)
		o.Noise = r.Noise(t.seed, t.t)
		grad := o.Grad
		if a.scales {
			o.Grad.Address = unsafe.Pointer(scaled)
			product := kernel.Operands{Param: o.Grad, Grad: grad}
			if r.GradType.Narrow() {
				kernel.MultiplyNarrow(around32.product, &a.factor, product, end-lo)
			} else {
				kernel.ApplyMixed(around32.product, &a.factor, &product, end-lo)
			}
		}
		kernel.ApplyOperands(k.bf16, k.f32, &t.scalars, &o, end-lo)
		if average := engine.AverageOperands(r, lo); a.averages && average.Param.Address != nil {
			if r.ParamType.Narrow() {
				kernel.LerpNarrow(around32.average, &a.weights[0], average, end-lo)
			} else {
				kernel.ApplyMixed(around32.average, &a.weights[0], &average, end-lo)
			}
		}
		if a.clears {
			clear(unsafe.Slice((*byte)(grad.Address), (end-lo)*r.GradType.Size()))
		}
	}
}
