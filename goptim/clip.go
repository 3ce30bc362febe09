package goptim

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
)

// A NormOrder is the order in which the squares of a norm are added and rounded. The orders of torch's builds differ, and with
// them the last bits of a norm.
type NormOrder int

const (
	NormOrderNewest  NormOrder = iota // of the newest torch for x86-64
	NormOrderTorch26                  // of torch 2.6 for x86-64, which fuses each square into its sum
	NormOrderARM64                    // of torch for arm64, which also has half as many sums
)

// GradNormOptions are the options of GradNorm.
type GradNormOptions struct {
	NormType         float64   `torch:"norm_type" default:"2" range:"(0,inf]"` // 2, or infinity for the largest magnitude
	ErrorIfNonfinite bool      `torch:"error_if_nonfinite"`                    // return an error if the norm is infinite or NaN
	Order            NormOrder `torch:"-"`
	Widen            bool      `torch:"-"` // compute norms of 16-bit gradients in float32, and do not round them
	Workers          int       `torch:"-"` // maximum number of threads; 0 means GOMAXPROCS
}

// ClipGradNormOptions are the options of ClipGradNorm.
type ClipGradNormOptions struct {
	MaxNorm          float64   `torch:"max_norm" range:"(0,inf]"`              // required
	NormType         float64   `torch:"norm_type" default:"2" range:"(0,inf]"` // 2, or infinity for the largest magnitude
	ErrorIfNonfinite bool      `torch:"error_if_nonfinite"`                    // return an error if the norm is infinite or NaN, and do not change the gradients
	Order            NormOrder `torch:"-"`
	Widen            bool      `torch:"-"` // compute norms of 16-bit gradients in float32, and do not round them
	Workers          int       `torch:"-"` // maximum number of threads; 0 means GOMAXPROCS
}

// ClipGradValueOptions are the options of ClipGradValue.
type ClipGradValueOptions struct {
	ClipValue float64 `torch:"clip_value" range:"(0,inf]"` // required
	Workers   int     `torch:"-"`                          // maximum number of threads; 0 means GOMAXPROCS
}

var (
	gradNormClass      = class[GradNormOptions]{name: "GradNorm"}.described()
	clipGradNormClass  = class[ClipGradNormOptions]{name: "ClipGradNorm"}.described()
	clipGradValueClass = class[ClipGradValueOptions]{name: "ClipGradValue"}.described()
)

// GradNorm returns the norm of all gradients together: the norm of their norms, or 0 if there is none. Parameters without a
// gradient do not count. The result is bit-for-bit equal to torch.nn.utils.get_total_norm.
func GradNorm[T Element](params []*Param[T], o GradNormOptions) (T, error) {
	gradNormClass.setDefaults(&o)
	err := joined(gradNormClass.checkRanges(&o), checkNorm(gradNormClass.name, o.NormType, o.Order), checkGrads(gradNormClass.name, params))
	if err != nil {
		return 0, err
	}
	p := takeNorms(o.NormType, int(o.Order), o.Widen, 1)
	defer p.put()
	p.own = appendGrads(p.own[:0], params)
	norm, err := p.total(p.own, threadsOf(o.Workers), nil)
	runtime.KeepAlive(params) // the rows contain addresses
	if err != nil {
		return 0, fmt.Errorf("goptim: %s: %w", gradNormClass.name, err)
	}
	if o.ErrorIfNonfinite && norm-norm != 0 {
		return elementOf[T](norm), errNonfinite(gradNormClass.name, p, params, norm)
	}
	return elementOf[T](norm), nil
}

// ClipGradNorm multiplies all gradients by MaxNorm / norm if their norm, which is that of GradNorm, is larger. It returns the norm
// before that. If the norm is infinite, finite gradients become 0 and infinite ones NaN; if it is NaN, all become NaN. A gradient
// that occurs twice counts twice. Results are bit-for-bit equal to torch.nn.utils.clip_grad_norm_. If the error wraps ErrOption or
// ErrParam, nothing has changed.
func ClipGradNorm[T Element](params []*Param[T], o ClipGradNormOptions) (T, error) {
	clipGradNormClass.setDefaults(&o)
	err := joined(
		clipGradNormClass.checkRanges(&o), checkNorm(clipGradNormClass.name, o.NormType, o.Order), checkGrads(clipGradNormClass.name, params))
	if err != nil {
		return 0, err
	}
	p := takeNorms(o.NormType, int(o.Order), o.Widen, 1)
	defer p.put()
	p.own = appendGrads(p.own[:0], params)
	norm, _, err := p.clip(p.own, o.MaxNorm, o.ErrorIfNonfinite, threadsOf(o.Workers), nil)
	runtime.KeepAlive(params) // the rows contain addresses
	if err != nil {
		return 0, fmt.Errorf("goptim: %s: %w", clipGradNormClass.name, err)
	}
	if o.ErrorIfNonfinite && norm-norm != 0 {
		return elementOf[T](norm), errNonfinite(clipGradNormClass.name, p, params, norm)
	}
	return elementOf[T](norm), nil
}

// ClipGradValue limits the magnitude of each element of the gradients to ClipValue. A NaN stays. Results are bit-for-bit equal to
// torch.nn.utils.clip_grad_value_. If the error wraps ErrOption or ErrParam, nothing has changed.
func ClipGradValue[T Element](params []*Param[T], o ClipGradValueOptions) error {
	if err := joined(clipGradValueClass.checkRanges(&o), checkGrads(clipGradValueClass.name, params)); err != nil {
		return err
	}
	p := clamp.take()
	defer clamp.put(p)
	p.joined = appendGrads(p.joined[:0], params)
	err := p.run(clamp, clampOptions{-o.ClipValue, o.ClipValue}, p.joined, threadsOf(o.Workers), nil, 0)
	runtime.KeepAlive(params) // the rows contain addresses
	return err
}

// checkNorm returns an error for a norm that is not supported.
func checkNorm(name string, normType float64, order NormOrder) error {
	return joined(
		require(normType == 2 || math.IsInf(normType, 1), name, "NormType", normType, "2 or +Inf"),
		require(order >= NormOrderNewest && order <= NormOrderARM64, name, "Order", float64(order), "one of the constants"),
	)
}

// joined is errors.Join, but does not allocate if there is no error.
func joined(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return errors.Join(slices.Clone(errs)...)
		}
	}
	return nil
}

func checkGrads[T Element](name string, params []*Param[T]) error {
	for i, p := range params {
		if p == nil {
			return fmt.Errorf("goptim: %s: parameter %d is nil: %w", name, i, ErrParam)
		}
		if p.Grad != nil && len(p.Grad) != len(p.Value) {
			return fmt.Errorf("goptim: %s: %s: the gradient has %d elements, expected %d: %w", name, p.describe(i), len(p.Grad), len(p.Value), ErrParam)
		}
	}
	return nil
}

// errNonfinite names the first gradient whose norm is not finite.
func errNonfinite[T Element](name string, pass *normPass, params []*Param[T], norm float64) error {
	row := 0
	for i, p := range params {
		if p.Grad == nil {
			continue
		}
		if x := pass.norm(row); x-x != 0 {
			return fmt.Errorf("goptim: %s: %s: the norm of the gradient is %v, expected a finite number: %w", name, p.describe(i), x, ErrParam)
		}
		row++
	}
	return fmt.Errorf("goptim: %s: the norm of all gradients is %v, expected a finite number: %w", name, norm, ErrParam)
}
