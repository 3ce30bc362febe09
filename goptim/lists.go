package goptim

import (
	"fmt"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/goptim/goptim/goptim/internal/cpow"
	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
	"github.com/goptim/goptim/internal/steps"
)

// This file contains the operations on lists of tensors that surround a step. The bindings call them by their names. A row has
// the tensor that is written, and for averages the one that is read. Like torch's functions, they do not check their options.

type (
	lerpOptions struct {
		Weight float64 `torch:"weight"` // of the parameter
	}
	mulAddOptions struct {
		Decay float64 `torch:"decay"`
	}
	polyakOptions struct {
		Tau float64 `torch:"tau"`
	}
	swaOptions struct {
		N float64 `torch:"n"` // number of averaged parameters, without this one
	}
	scaleOptions struct {
		Factor float64 `torch:"factor"`
	}
	divideOptions struct {
		Divisor float64 `torch:"divisor"`
	}
	clampOptions struct {
		Min float64 `torch:"min"`
		Max float64 `torch:"max"`
	}
	unscaleOptions struct {
		Inv float64 `torch:"inv"`
	}
	noOptions struct{}
)

var (
	lerpAverage = elementwiseSpec(class[lerpOptions]{name: "Lerp", tensors: 2}, func(o *lerpOptions, c *stepContext) kernel.Average {
		return kernel.Average{Weight: c.weight(o.Weight)}
	}, f32.AverageLerp, f64.AverageLerp)

	mulAddAverage = elementwiseSpec(class[mulAddOptions]{name: "MulAdd", tensors: 2}, func(o *mulAddOptions, c *stepContext) kernel.Average {
		return kernel.Average{Keep: o.Decay, C: 1 - o.Decay}
	}, f32.AverageMulAdd, f64.AverageMulAdd)

	polyakAverage = elementwiseSpec(class[polyakOptions]{name: "Polyak", tensors: 2}, func(o *polyakOptions, c *stepContext) kernel.Average {
		return kernel.Average{Keep: 1 - o.Tau, C: c.alpha(o.Tau)}
	}, f32.AveragePolyak, f64.AveragePolyak)

	swaAverage = elementwiseSpec(class[swaOptions]{name: "SWA", tensors: 2}, func(o *swaOptions, c *stepContext) kernel.Average {
		return kernel.Average{N: o.N + 1}
	}, f32.AverageSWA, f64.AverageSWA)

	copyValues = elementwiseSpec(class[noOptions]{name: "Copy", tensors: 2}, withoutScalars, f32.Copy, f64.Copy)

	zero = elementwiseSpec(class[noOptions]{name: "Zero", tensors: 1}, withoutScalars, f32.Zero, f64.Zero)

	scale = elementwiseSpec(class[scaleOptions]{name: "Scale", tensors: 1}, func(o *scaleOptions, c *stepContext) kernel.Factor {
		return kernel.Factor{X: o.Factor}
	}, f32.Scale, f64.Scale)

	_ = elementwiseSpec(class[divideOptions]{name: "Divide", tensors: 1}, func(o *divideOptions, c *stepContext) kernel.Factor {
		return kernel.Factor{X: o.Divisor}
	}, f32.Divide, f64.Divide)

	clamp = elementwiseSpec(class[clampOptions]{name: "Clamp", tensors: 1}, func(o *clampOptions, c *stepContext) kernel.Clamp {
		return kernel.Clamp{Min: c.element(o.Min), Max: c.element(o.Max)}
	}, f32.Clamp, f64.Clamp)
)

// The operations of averages of 16 bits whose results torch rounds one by one.
var (
	mulAddStages = []kernel.Stage{stage(f32.AverageKeep, 0, 0), stage(f32.AverageProduct, 1, 1), stage(f32.AverageAdd, 0, 1)}
	polyakStages = []kernel.Stage{stage(f32.AverageKeep, 0, 0), stage(f32.AverageAddProduct, 0, 1)}
	swaStages    = []kernel.Stage{stage(f32.AverageSubtract, 1, 0), stage(f32.AverageDivide, 1, 1), stage(f32.AverageAdd, 0, 1)}
)

func stage(f kernel.Func[kernel.Average, float32], to, from int) kernel.Stage {
	return kernel.Stage{Func: f, To: to, From: from}
}

func init() {
	// A product with 1 changes only signalling NaNs.
	scale.idle = func(o *scaleOptions) bool { return o.Factor == 1 }
	inStages := func(stages []kernel.Stage) func(h *kernel.Average, o kernel.Operands, n int) {
		return func(h *kernel.Average, o kernel.Operands, n int) { kernel.ApplyStages(stages, h, o, n) }
	}
	scale.arithmetic.narrow = func(h *kernel.Factor, o kernel.Operands, n int) {
		o.Grad = o.Param
		kernel.MultiplyNarrow(f32.Product, h, o, n)
	}
	lerpAverage.arithmetic.narrow = func(h *kernel.Average, o kernel.Operands, n int) { kernel.LerpNarrow(f32.AverageLerp, h, o, n) }
	mulAddAverage.arithmetic.narrow = inStages(mulAddStages)
	polyakAverage.arithmetic.narrow = inStages(polyakStages)
	swaAverage.arithmetic.narrow = inStages(swaStages)
	copyValues.arithmetic.narrow = func(_ *kernel.None, o kernel.Operands, n int) { copy(encodings(o.Param, n), encodings(o.Grad, n)) }
	zero.arithmetic.narrow = func(_ *kernel.None, o kernel.Operands, n int) { clear(encodings(o.Param, n)) }
}

// encodings are n elements of 16 bits.
func encodings(o kernel.Operand, n int) []uint16 { return unsafe.Slice((*uint16)(o.Address), n) }

func withoutScalars(*noOptions, *stepContext) kernel.None { return kernel.None{} }

// A listOperation is an operation on lists that is not elementwise, or has results.
type listOperation[O any] struct {
	check func(o *O, rows []engine.Row) error // may be nil
	do    func(o *O, rows []engine.Row, results []float64, c *steps.Call) error
}

// listSpec registers an operation on lists. It applies to each group separately, after all groups were checked.
func listSpec[O any](c class[O], operation listOperation[O]) *class[O] {
	c = c.described()
	k := c.kind()
	k.Step = func(call steps.Call) error {
		for _, write := range []bool{false, true} {
			for g := call.Groups; g != nil && !(write && call.OnlyCheck); g = g.After() {
				var o O
				c.decode(&o, g.Words())
				layout := c.layout(&o)
				layout.Narrow = true
				rows, err := rowsOf(g, c.name, layout)
				switch {
				case err != nil:
					return err
				case write:
					err = operation.do(&o, rows, g.Results(), &call)
				case operation.check != nil:
					err = operation.check(&o, rows)
				}
				if err != nil {
					return fmt.Errorf("goptim: %s: %w", c.name, err)
				}
			}
		}
		return nil
	}
	steps.Register(k)
	return &c
}

// An unscalePass multiplies gradients by the inverse of a loss scale, and finds values that are not finite.
type unscalePass struct {
	rows   []engine.Row
	factor kernel.Factor
	none   kernel.None
	found  atomic.Bool
}

var unscalePasses = sync.Pool{New: func() any { return new(unscalePass) }}

var _ = listSpec(class[unscaleOptions]{
	name: "Unscale", tensors: 1, results: []string{"found_inf"},
}, listOperation[unscaleOptions]{do: (*unscaleOptions).unscale})

// unscale is torch._amp_foreach_non_finite_check_and_unscale_.
func (o *unscaleOptions) unscale(rows []engine.Row, results []float64, c *steps.Call) error {
	p := unscalePasses.Get().(*unscalePass)
	defer func() {
		p.rows = nil // see spec.put
		unscalePasses.Put(p)
	}()
	p.rows, p.factor.X = rows, o.Inv
	p.found.Store(false)
	err := engine.Run(p, rows, c.Threads, c.Team)
	results[0] = kernel.Flag(p.found.Load())
	return err
}

var singleLayout = engine.Layout{Single: true}

// Update implements engine.Pass.
func (p *unscalePass) Update(part engine.Part) {
	for row := part.First; row <= part.Last; row++ {
		if next := row + ahead; next <= part.Last {
			p.rows[next].Prefetch(&singleLayout)
		}
		r := &p.rows[row]
		lo, hi := part.Of(row, int(r.N))
		finite := true
		switch {
		case r.DType().Narrow():
			o := engine.Operands(r, &singleLayout, lo)
			o.Grad = o.Param
			most := float32(0)
			if p.factor.X == 1 {
				most = kernel.ScanNarrow(f32.Largest, &p.none, o.Param, hi-lo)
			} else {
				most = kernel.MultiplyNarrow(f32.Product, &p.factor, o, hi-lo)
			}
			finite = most-most == 0
		case r.DType() == engine.Float32 && p.factor.X == 1:
			finite = scanFinite(f32.Largest, &p.none, r, lo, hi)
		case r.DType() == engine.Float32:
			finite = scanFinite(f32.Unscale, &p.factor, r, lo, hi)
		case p.factor.X == 1:
			finite = scanFinite(f64.Largest, &p.none, r, lo, hi)
		default:
			finite = scanFinite(f64.Unscale, &p.factor, r, lo, hi)
		}
		if !finite {
			p.found.Store(true)
		}
	}
}

// scanFinite applies an operation and reports whether all elements were finite.
func scanFinite[S any, T Float](f kernel.ScanFunc[S, T], h *S, r *engine.Row, lo, hi int) bool {
	x, _, _ := engine.View[T](r, &singleLayout, lo, hi)
	most := kernel.Scan(f, h, x)
	return most-most == 0
}

// run applies an elementwise operation with the given options to rows. The seed is that of rows with the flag Stochastic. On an error of
// the scalars, nothing has changed.
func (p *tablePass[O, S]) run(s *spec[O, S], o O, rows []engine.Row, threads int, team engine.Team, seed uint64) error {
	p.options = append(p.options[:0], o)
	p.rules = append(p.rules[:0], bound[O, S]{s, &p.options[0]})
	p.begin(s.arithmetic, rows)
	if err := p.add(&p.rules[0], len(rows), stepContext{pow: cpow.Pow, seed: seed}); err != nil || p.idle() {
		return err
	}
	return engine.Run(p, rows, threads, team)
}

// appendGrads appends a row for each gradient.
func appendGrads[T Element](rows []engine.Row, params []*Param[T]) []engine.Row {
	for _, p := range params {
		if p.Grad != nil {
			rows = append(rows, engine.Row{
				N: int64(len(p.Grad)), Param: address(p.Grad), Types: engine.Types{ParamType: dtype[T]()},
			})
		}
	}
	return rows
}

// appendValues appends a row for each value that is written and the one that is read.
func appendValues[T Element](rows []engine.Row, written, read []*Param[T]) []engine.Row {
	for i, p := range written {
		rows = append(rows, engine.Row{
			N: int64(len(p.Value)), Param: address(p.Value), Grad: address(read[i].Value), Types: engine.TypesOf(dtype[T](), engine.None),
		})
	}
	return rows
}
