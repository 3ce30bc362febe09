package goptim

import (
	"fmt"
	"math"

	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/goptim/internal/kernel"
)

// A ScalarError reports that the scalars of a step cannot be computed from the options: a division by zero, an overflow, or
// a number that the element type cannot represent. It occurs where torch.optim raises an exception. It wraps ErrOption, so
// nothing has changed.
type ScalarError struct {
	// Exception is the name of Python's exception: ZeroDivisionError, OverflowError, ValueError, TypeError or RuntimeError.
	Exception string
	message   string
}

func (e *ScalarError) Error() string { return e.message + ": " + ErrOption.Error() }

// Unwrap returns ErrOption.
func (e *ScalarError) Unwrap() error { return ErrOption }

// scalarLog records the first error of the scalars of a step, and the changes of scalar states.
type scalarLog struct {
	err     error
	changes []change
}

// A change is a scalar state of a row before and after the step.
type change struct {
	row, state    int
	before, after float64
}

func (l *scalarLog) begin() { l.err, l.changes = nil, l.changes[:0] }

// fail records an error of the row's scalars if there is none yet, because torch raises the first one.
func (n *now) fail(exception, format string, args ...any) {
	if n.log.err == nil {
		n.log.err = &ScalarError{exception, fmt.Sprintf("step %v of parameter %d: %s", n.t, n.i, fmt.Sprintf(format, args...))}
	}
}

// quotient returns Python's x / y.
func (n *now) quotient(x, y float64) float64 {
	if y == 0 {
		n.fail("ZeroDivisionError", "%v is divided by zero", x)
	}
	return x / y
}

// power returns Python's x ** y. A complex result is an error with the given exception.
func (n *now) power(x, y float64, exception string) float64 {
	if x < 0 && y-math.Floor(y) > 0 && !math.IsInf(x, 0) {
		n.fail(exception, "%v to the power of %v is complex", x, y)
		return math.NaN()
	}
	return n.realPower(x, y)
}

// realPower is power for a real result.
func (n *now) realPower(x, y float64) float64 {
	z := n.pow(x, y)
	if math.IsInf(z, 0) && !math.IsInf(x, 0) && !math.IsInf(y, 0) {
		if x == 0 {
			n.fail("ZeroDivisionError", "zero to the power of %v", y)
		} else {
			n.fail("OverflowError", "%v to the power of %v is too large", x, y)
		}
	}
	return z
}

// sqrt returns Python's math.sqrt.
func (n *now) sqrt(x float64) float64 {
	if x < 0 {
		n.fail("ValueError", "the square root of %v", x)
	}
	return math.Sqrt(x)
}

// narrow returns x. It is for conversions of a number to the element type in which torch rejects a finite number that
// becomes infinite. These are the alpha of add_, the value of addcmul_ and addcdiv_, the weight of lerp_, the bounds of
// clamp_, and assignments, but not the operands of mul_, div_ and add_.
func (n *now) narrow(x float64) float64 {
	if n.row.DType() == engine.Float32 && math.Abs(x) > math.MaxFloat32 && !math.IsInf(x, 0) {
		n.fail("RuntimeError", "%v cannot be converted to float32 without overflow", x)
	}
	return x
}

// coupled returns the scalars of a gradient with coupled weight decay.
func (n *now) coupled(maximize bool, weightDecay float64) kernel.Coupled {
	return kernel.CoupledOf(maximize, n.narrow(weightDecay))
}

// decoupled returns the factor of a parameter for decoupled weight decay. Without weight decay, torch does not multiply.
func decoupled(lr, weightDecay float64) float64 {
	if weightDecay == 0 {
		return 1
	}
	return 1 - float64(lr*weightDecay)
}

// weight returns the weight w of lerp_ for the elements of the row.
func (n *now) weight(w float64) kernel.Weight {
	if n.narrow(w); n.row.DType() == engine.Float32 {
		return kernel.WeightOf[float32](w)
	}
	return kernel.WeightOf[float64](w)
}

// divisor returns the scalars to divide the square roots of the row's elements by x.
func (n *now) divisor(x float64) kernel.Divisor {
	if n.row.DType() == engine.Float32 {
		return kernel.DivisorOf[float32](x)
	}
	return kernel.DivisorOf[float64](x)
}

// setNumber records the new value of a scalar state, and returns it rounded to the state's dtype.
func (n *now) setNumber(state int, x float64) float64 {
	x = n.row.StateType[state].Round(x)
	n.log.changes = append(n.log.changes, change{n.i, state, n.row.Number(state), x})
	return x
}

// setTensor is setNumber for a state whose value torch converts to a tensor first.
func (n *now) setTensor(state int, x float64) {
	if !n.wide {
		x = float64(float32(x))
	}
	n.setNumber(state, x)
}
