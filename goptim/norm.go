package goptim

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"sync"

	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
	"github.com/goptim/goptim/goptim/internal/kernel/reduce"
	"github.com/goptim/goptim/internal/steps"
)

// The options of the kinds of norms. Their names are torch's, except for order, which is an index of reduce.Orders.
type (
	gradNormOptions struct {
		NormType float64 `torch:"norm_type"` // 2 or infinity
		Order    int     `torch:"order"`
		Widen    bool    `torch:"widen"` // norms of 16 bits are computed in float32, and not rounded
	}
	clipGradNormOptions struct {
		NormType         float64 `torch:"norm_type"`
		Order            int     `torch:"order"`
		Widen            bool    `torch:"widen"` // as for gradNormOptions
		MaxNorm          float64 `torch:"max_norm"`
		ErrorIfNonfinite bool    `torch:"error_if_nonfinite"` // a norm that is not finite changes nothing
	}
)

var (
	_ = listSpec(class[gradNormOptions]{
		name: "Norms", tensors: 1, states: []state{{key: "norm", scalar: true, given: true}},
	}, listOperation[gradNormOptions]{(*gradNormOptions).check, (*gradNormOptions).writeNorms})

	_ = listSpec(class[gradNormOptions]{
		name: "GradNorm", tensors: 1, results: []string{"norm"},
	}, listOperation[gradNormOptions]{(*gradNormOptions).check, (*gradNormOptions).total})

	_ = listSpec(class[clipGradNormOptions]{
		name: "ClipGradNorm", tensors: 1, results: []string{"norm", "coefficient"},
	}, listOperation[clipGradNormOptions]{(*clipGradNormOptions).check, (*clipGradNormOptions).clip})
)

// check returns an error if a norm is not supported or does not exist.
func (o *gradNormOptions) check(rows []engine.Row) error {
	if o.NormType != 2 && !math.IsInf(o.NormType, 1) {
		return fmt.Errorf("norm_type is %v, expected 2 or infinity: %w", o.NormType, ErrOption)
	}
	if o.Order < 0 || o.Order >= len(reduce.Orders) {
		return fmt.Errorf("order is %d, expected 0 to %d: %w", o.Order, len(reduce.Orders)-1, ErrOption)
	}
	for i := range rows {
		if rows[i].N == 0 && o.NormType != 2 {
			return fmt.Errorf("row %d has no elements, and therefore no infinity norm: %w", i, ErrParam)
		}
	}
	return nil
}

// writeNorms writes the norm of each tensor to the scalar of its row.
func (o *gradNormOptions) writeNorms(rows []engine.Row, _ []float64, c *steps.Call) error {
	p := takeNorms(o.NormType, o.Order, o.Widen, c.Threads)
	defer p.put()
	err := p.run(rows, c.Threads, c.Team)
	for i := range rows {
		if err == nil {
			rows[i].SetNumber(0, p.norm(i))
		}
	}
	return err
}

// total is torch.nn.utils.get_total_norm: the norm of the norms of the tensors.
func (o *gradNormOptions) total(rows []engine.Row, results []float64, c *steps.Call) (err error) {
	p := takeNorms(o.NormType, o.Order, o.Widen, c.Threads)
	defer p.put()
	results[0], err = p.total(rows, c.Threads, c.Team)
	return err
}

func (o *clipGradNormOptions) check(rows []engine.Row) error {
	return (&gradNormOptions{o.NormType, o.Order, o.Widen}).check(rows)
}

// clip is torch.nn.utils.clip_grad_norm_.
func (o *clipGradNormOptions) clip(rows []engine.Row, results []float64, c *steps.Call) (err error) {
	p := takeNorms(o.NormType, o.Order, o.Widen, c.Threads)
	defer p.put()
	results[0], results[1], err = p.clip(rows, o.MaxNorm, o.ErrorIfNonfinite, c.Threads, c.Team)
	return err
}

// A normPass computes the norms of rows, which may have different types.
type normPass struct {
	rows    []engine.Row
	own     []engine.Row // the rows of a call from Go
	order   reduce.Order
	largest bool         // the norm is the largest magnitude
	widen   bool         // norms of 16 bits are computed in float32, and not rounded
	threads int          // torch's, on which the order of a sum of float16 depends
	of      engine.DType // of the norm of all rows, as torch's promotion of their types
	norms32 []float32    // of every row that is not of float64
	norms64 []float64    // of every row, if one is of float64
	norm16  [1]float32   // the norm of norms16
	norms16 []uint16     // norms32, if all rows have one type of 16 bits
	queue   []int        // the rows of all batches, in order
	ends    []int        // ends[i] is the end of batch i in queue
	do      func(batch int)
	none    kernel.None
}

var normPasses = sync.Pool{New: func() any {
	p := new(normPass)
	p.do = p.batch
	return p
}}

// takeNorms returns a pass for put to keep. Threads is the number of threads that torch would use.
func takeNorms(normType float64, order int, widen bool, threads int) *normPass {
	p := normPasses.Get().(*normPass)
	p.order, p.largest, p.widen, p.threads = reduce.Orders[order], math.IsInf(normType, 1), widen, threads
	return p
}

func (p *normPass) put() {
	p.rows = nil // see spec.put
	normPasses.Put(p)
}

// run computes the norms of rows.
func (p *normPass) run(rows []engine.Row, threads int, team engine.Team) error {
	p.rows = rows
	return engine.Each(p.plan(threads), threads, team, p.do)
}

// total returns the norm of the norms of rows, in the type to which torch promotes theirs.
func (p *normPass) total(rows []engine.Row, threads int, team engine.Team) (float64, error) {
	if err := p.run(rows, threads, team); err != nil {
		return 0, err
	}
	switch p.of {
	case engine.Float32:
		return float64(normOf(p, p.norms32)), nil
	case engine.Float64:
		for i := range rows {
			p.norms64[i] = p.norm(i)
		}
		return normOf(p, p.norms64), nil
	}
	if p.largest {
		return float64(normOf(p, p.norms32)), nil
	}
	p.norms16 = p.norms16[:0]
	for _, x := range p.norms32 {
		p.norms16 = append(p.norms16, p.of.Bits(x))
	}
	n := p.narrowNorms(p.of)
	n.Norms = p.norm16[:]
	n.Add(0, p.norms16)
	n.Finish()
	return float64(p.norm16[0]), nil
}

// narrowNorms returns what computes norms of a type of 16 bits.
func (p *normPass) narrowNorms(d engine.DType) reduce.NarrowNorms {
	return reduce.NarrowNorms{Order: p.order, Format: d.Format(), Widen: p.widen, Threads: p.threads, Norms: p.norms32}
}

// clip multiplies rows by a coefficient that limits their norm. If finite is set, it does so only if the norm is finite.
func (p *normPass) clip(rows []engine.Row, maxNorm float64, finite bool, threads int, team engine.Team) (norm, coefficient float64, err error) {
	if norm, err = p.total(rows, threads, team); err != nil {
		return 0, 0, err
	}
	coefficient = p.coefficient(norm, maxNorm)
	if finite && norm-norm != 0 {
		return norm, coefficient, nil
	}
	s := scale.take()
	defer scale.put(s)
	return norm, coefficient, s.run(scale, scaleOptions{coefficient}, rows, threads, team, 0)
}

const (
	// parallelNorm is the smallest number of elements for two threads.
	parallelNorm = 1 << 18
	// leastBatch makes the cost of taking a batch small compared with its work.
	leastBatch = 1 << 15
)

// plan divides the rows into batches, each for one thread, and returns their number. A row is never divided, because its norm is
// one chain of additions. Large rows are first, and later batches are smaller, so that all threads end at about the same time.
func (p *normPass) plan(threads int) int {
	p.queue, p.ends, p.of = p.queue[:0], p.ends[:0], engine.None
	total := 0
	for i := range p.rows {
		total += int(p.rows[i].N)
		switch d := p.normType(i); {
		case p.of == engine.None || d == engine.Float64:
			p.of = d
		case p.of != d && p.of != engine.Float64:
			p.of = engine.Float32
		}
	}
	if p.of == engine.None {
		p.of = engine.Float32
	}
	p.norms32, p.norms64 = slices.Grow(p.norms32[:0], len(p.rows))[:len(p.rows)], p.norms64[:0]
	if p.of == engine.Float64 {
		p.norms64 = slices.Grow(p.norms64, len(p.rows))[:len(p.rows)]
	}
	large := math.MaxInt
	if threads > 1 && total >= parallelNorm {
		large = max(leastBatch, total/(threads*64))
		for i := range p.rows {
			if int(p.rows[i].N) >= large {
				p.queue = append(p.queue, i)
			}
		}
		slices.SortFunc(p.queue, func(i, j int) int { return cmp.Or(cmp.Compare(p.rows[j].N, p.rows[i].N), cmp.Compare(i, j)) })
	}
	for i := range p.rows {
		if int(p.rows[i].N) < large {
			p.queue = append(p.queue, i)
		}
	}
	if large == math.MaxInt {
		p.ends = append(p.ends, len(p.queue))
		return 1
	}
	for at := 0; at < len(p.queue); p.ends = append(p.ends, at) {
		size, sum := max(leastBatch, total/(2*threads)), 0
		for at < len(p.queue) && (sum == 0 || sum+int(p.rows[p.queue[at]].N) <= size) {
			sum += int(p.rows[p.queue[at]].N)
			at++
		}
		total -= sum
	}
	return len(p.ends)
}

// prefetched is the number of rows between the one that is prefetched and the one that is added.
const prefetched = 8

// batch computes the norms of a batch.
func (p *normPass) batch(i int) {
	first := 0
	if i > 0 {
		first = p.ends[i-1]
	}
	queue := p.queue[first:p.ends[i]]
	norms32 := reduce.Norms[float32]{Order: p.order, Norms: p.norms32}
	norms64 := reduce.Norms[float64]{Order: p.order, Norms: p.norms64}
	bfloat16, float16 := p.narrowNorms(engine.BFloat16), p.narrowNorms(engine.Float16)
	for k, row := range queue {
		if k+prefetched < len(queue) {
			p.rows[queue[k+prefetched]].Prefetch(&singleLayout)
		}
		r := &p.rows[row]
		switch r.DType() {
		case engine.Float32:
			x, _, _ := engine.View[float32](r, &singleLayout, 0, int(r.N))
			if p.largest {
				p.norms32[row] = kernel.Scan(f32.Largest, &p.none, x)
			} else {
				norms32.Add(row, x)
			}
		case engine.Float64:
			x, _, _ := engine.View[float64](r, &singleLayout, 0, int(r.N))
			if p.largest {
				p.norms64[row] = kernel.Scan(f64.Largest, &p.none, x)
			} else {
				norms64.Add(row, x)
			}
		default:
			x, _, _ := engine.View[uint16](r, &singleLayout, 0, int(r.N))
			switch {
			case p.largest:
				operands := engine.Operands(r, &singleLayout, 0)
				p.norms32[row] = kernel.ScanNarrow(f32.Largest, &p.none, operands.Param, int(r.N))
			case r.DType() == engine.BFloat16:
				bfloat16.Add(row, x)
			default:
				float16.Add(row, x)
			}
		}
	}
	norms32.Finish()
	norms64.Finish()
	bfloat16.Finish()
	float16.Finish()
}

// norm returns the norm of a row.
func (p *normPass) norm(i int) float64 {
	if p.rows[i].DType() == engine.Float64 {
		return p.norms64[i]
	}
	return float64(p.norms32[i])
}

// normType returns the type of the norm of a row.
func (p *normPass) normType(i int) engine.DType {
	if p.widen {
		return p.rows[i].Arithmetic()
	}
	return p.rows[i].DType()
}

func normOf[T Float](p *normPass, norms []T) T {
	if !p.largest {
		n := reduce.Norm[T]{Order: p.order}
		return n.Of(norms)
	}
	most := 0.0
	for _, x := range norms {
		most = kernel.Maximum(most, float64(x))
	}
	return T(most)
}

// coefficient returns the factor of the gradients in torch's order: the division is a product with the reciprocal.
func (p *normPass) coefficient(norm, maxNorm float64) float64 {
	switch p.of {
	case engine.Float32:
		return float64(coefficientOf(float32(norm), float32(maxNorm)))
	case engine.Float64:
		return coefficientOf(norm, maxNorm)
	}
	// The number that is added is rounded to 16 bits too, but not the one of the product.
	sum := p.of.Round(float64(float32(norm) + float32(p.of.Round(1e-6))))
	inverse := p.of.Round(float64(1 / float32(sum)))
	return min(1, p.of.Round(float64(float32(inverse)*float32(maxNorm))))
}

func coefficientOf[T Float](norm, maxNorm T) T {
	x := T(1/(norm+1e-6)) * maxNorm
	if x > 1 {
		return 1
	}
	return x
}
