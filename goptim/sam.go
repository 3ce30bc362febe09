package goptim

import (
	"errors"
	"fmt"
	"math"
	"runtime"

	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
	"github.com/goptim/goptim/goptim/internal/kernel/reduce"
)

// SAMOptions are the hyperparameters of SAM.
type SAMOptions struct {
	Rho        float64   `torch:"rho" default:"0.05" range:"[0,inf]"`          // length of the perturbation
	Adaptive   bool      `torch:"adaptive"`                                    // scale the perturbation of an element by its square
	PerturbEps float64   `torch:"perturb_eps" default:"1e-12" range:"[0,inf]"` // added to the norm of the gradients
	Order      NormOrder `torch:"-"`
}

type perturbOptions struct {
	Scale    float64 `torch:"scale"`
	Adaptive bool    `torch:"adaptive"`
}

var (
	samClass = class[SAMOptions]{name: "SAM"}.described()

	// perturb saves the parameters and moves them in the direction of their gradients.
	perturb = elementwiseSpec(class[perturbOptions]{
		name: "SAM", uncounted: true,
		states: []state{{key: "old_p", copied: true}},
	}, func(o *perturbOptions, c *stepContext) kernel.SAM {
		return kernel.SAM{Scale: o.Scale, Adaptive: kernel.Flag(o.Adaptive)}
	}, f32.SAM, f64.SAM)
)

// SAM is sharpness-aware minimization around another optimizer: Foret, Kleiner, Mobahi & Neyshabur, "Sharpness-Aware Minimization
// for Efficiently Improving Generalization", arXiv:2010.01412, Algorithm 1; with Adaptive, Kwon, Kim, Park & Choi, "ASAM",
// arXiv:2102.11600. A step uses the gradients at the values plus Rho * g / |g|. Results are bit-for-bit equal to SAM of the Python
// package pytorch-optimizer.
type SAM struct {
	SAMOptions     // used by the next step; may be changed between steps
	Workers    int // maximum number of threads; 0 means GOMAXPROCS

	base Optimizer
	all  []wrapped
	old  []stored // the values before the perturbation, of the parameters that are perturbed
	norm []engine.Row
}

// NewSAM returns a new SAM around an optimizer of parameters with dense gradients, which may be Groups. The error wraps ErrOption or
// ErrParam.
func NewSAM(base Optimizer, o SAMOptions) (*SAM, error) {
	samClass.setDefaults(&o)
	if err := o.check(); err != nil {
		return nil, err
	}
	all, err := wrappedOf("SAM", base)
	if err != nil {
		return nil, err
	}
	return &SAM{SAMOptions: o, base: base, all: all, old: make([]stored, len(all))}, nil
}

func (o *SAMOptions) check() error {
	return errors.Join(samClass.checkOptions(o), checkNorm("SAM", 2, o.Order))
}

// Base returns the optimizer that NewSAM was given.
func (s *SAM) Base() Optimizer { return s.base }

// Check returns the error that FirstStep or SecondStep would return for bad input.
func (s *SAM) Check() error {
	if err := checkSelf(s.base != nil); err != nil {
		return err
	}
	err := s.SAMOptions.check()
	for i, p := range s.all {
		if n := p.elements(); s.old[i].made() && s.old[i].n != n {
			err = errors.Join(err, fmt.Errorf("goptim: SAM: parameter %d has %d elements, expected %d as before: %w", i, n, s.old[i].n, ErrParam))
		}
	}
	return errors.Join(err, s.base.Check())
}

// Step calls gradients, which sets the gradients at the current values, perturbs the values, calls it again, restores the values
// and steps the optimizer. If gradients returns an error, so does Step, with the values as before.
func (s *SAM) Step(gradients func() error) error {
	if err := gradients(); err != nil {
		return err
	}
	if err := s.FirstStep(); err != nil {
		return err
	}
	if err := gradients(); err != nil {
		s.restore()
		return err
	}
	return s.SecondStep()
}

// FirstStep perturbs the values by the current gradients. If the error wraps ErrOption or ErrParam, nothing has changed.
func (s *SAM) FirstStep() error {
	if err := s.Check(); err != nil {
		return err
	}
	scale, err := s.scale()
	if err != nil {
		return err
	}
	rows := make([]engine.Row, 0, len(s.all))
	for i, p := range s.all {
		if p.hasGrad() {
			s.old[i] = p.copied()
			rows = append(rows, p.row(&s.old[i]))
		}
	}
	for first := 0; first < len(rows); {
		end := first + 1
		for end < len(rows) && rows[end].ParamType == rows[first].ParamType {
			end++
		}
		x := rows[first].ParamType.Round(scale)
		if err := runWrapped(perturb, perturbOptions{x, s.Adaptive}, rows[first:end], s.Workers, s); err != nil {
			return err
		}
		first = end
	}
	return nil
}

// SecondStep restores the values before the perturbation, and steps the optimizer by the current gradients.
func (s *SAM) SecondStep() error {
	if err := s.Check(); err != nil {
		return err
	}
	s.restore()
	return s.base.Step()
}

func (s *SAM) restore() {
	for i, p := range s.all {
		if old := &s.old[i]; old.made() {
			p.copyFrom(old)
			*old = stored{}
		}
	}
}

// scale returns the factor of the gradients, computed in float32.
func (s *SAM) scale() (float64, error) {
	s.norm = s.norm[:0]
	var memory []any
	for _, p := range s.all {
		switch {
		case !p.hasGrad():
		case s.Adaptive:
			row, held := p.weightedRow()
			s.norm, memory = append(s.norm, row), append(memory, held)
		default:
			s.norm = append(s.norm, p.gradRow())
		}
	}
	n := takeNorms(2, int(s.Order), true, 1)
	defer n.put()
	err := n.run(s.norm, threadsOf(s.Workers), nil)
	runtime.KeepAlive(s)
	runtime.KeepAlive(memory)
	if err != nil {
		return 0, fmt.Errorf("goptim: SAM: %w", err)
	}
	squares := make([]float32, len(s.norm))
	for i := range squares {
		x := float32(n.norm(i))
		squares[i] = x * x
	}
	norm := float32(math.Sqrt(float64(reduce.Sum(squares, reduce.Orders[s.Order])))) + float32(s.PerturbEps)
	return float64(1 / norm * float32(s.Rho)), nil
}

func (p *Param[T]) gradRow() engine.Row {
	return engine.Row{N: int64(len(p.Grad)), Param: address(p.Grad), Types: engine.Types{ParamType: dtype[T]()}}
}

// weightedRow returns a row of |value|*gradient, in float32 for 16 bits, and its memory.
func (p *Param[T]) weightedRow() (engine.Row, any) {
	d := dtype[T]()
	if d == engine.Float64 {
		value, grad := viewed[float64](p.Value), viewed[float64](p.Grad)
		product := make([]float64, len(grad))
		for i, g := range grad {
			product[i] = g * math.Abs(value[i])
		}
		return engine.Row{N: int64(len(product)), Param: address(product), Types: engine.Types{ParamType: d}}, product
	}
	product := make([]float32, len(p.Grad))
	for i := range product {
		product[i] = float32(math.Abs(asFloat64(d, p.Value[i])) * asFloat64(d, p.Grad[i]))
	}
	return engine.Row{N: int64(len(product)), Param: address(product), Types: engine.Types{ParamType: engine.Float32}}, product
}

// asFloat64 returns an element as a float64.
func asFloat64[T Element](d engine.DType, x T) float64 {
	switch d {
	case engine.BFloat16:
		return float64(BFloat16(x).Float32())
	case engine.Float16:
		return float64(Float16(x).Float32())
	}
	return float64(x)
}
