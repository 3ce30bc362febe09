package goptim

import (
	"fmt"
	"math"

	"github.com/goptim/goptim/goptim/internal/cpow"
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
func (c *stepContext) fail(exception, format string, args ...any) {
	if c.log.err == nil {
		c.log.err = &ScalarError{exception, fmt.Sprintf("step %v of parameter %d: %s", c.t, c.i, fmt.Sprintf(format, args...))}
	}
}

// quotient returns Python's x / y.
func (c *stepContext) quotient(x, y float64) float64 {
	if y == 0 {
		c.fail("ZeroDivisionError", "%v is divided by zero", x)
	}
	return x / y
}

// power returns Python's x ** y. A complex result is an error with the given exception.
func (c *stepContext) power(x, y float64, exception string) float64 {
	if x < 0 && y-math.Floor(y) > 0 && !math.IsInf(x, 0) {
		c.fail(exception, "%v to the power of %v is complex", x, y)
		return math.NaN()
	}
	return c.realPower(x, y)
}

// realPower is power for a real result.
func (c *stepContext) realPower(x, y float64) float64 {
	z := c.pow(x, y)
	if math.IsInf(z, 0) && !math.IsInf(x, 0) && !math.IsInf(y, 0) {
		if x == 0 {
			c.fail("ZeroDivisionError", "zero to the power of %v", y)
		} else {
			c.fail("OverflowError", "%v to the power of %v is too large", x, y)
		}
	}
	return z
}

// logarithm returns Python's math.log.
func (c *stepContext) logarithm(x float64) float64 {
	if x <= 0 {
		c.fail("ValueError", "the logarithm of %v", x)
	}
	if c.cLog == nil {
		return cpow.Log(x)
	}
	return c.cLog(x)
}

// exponential returns Python's math.exp.
func (c *stepContext) exponential(x float64) float64 {
	y := cpow.Exp(x)
	if c.cExp != nil {
		y = c.cExp(x)
	}
	if math.IsInf(y, 0) && !math.IsInf(x, 0) {
		c.fail("OverflowError", "the exponential of %v is too large", x)
	}
	return y
}

// sqrt returns Python's math.sqrt.
func (c *stepContext) sqrt(x float64) float64 {
	if x < 0 {
		c.fail("ValueError", "the square root of %v", x)
	}
	return math.Sqrt(x)
}

// narrow returns x. It is for conversions of a number to the element type in which torch rejects a finite number that
// becomes infinite. These are the alpha of add_, the value of addcmul_ and addcdiv_, the weight of lerp_, the bounds of
// clamp_, and assignments, but not the operands of mul_, div_ and add_.
func (c *stepContext) narrow(x float64) float64 {
	if c.row.Arithmetic() == engine.Float32 && math.Abs(x) > math.MaxFloat32 && !math.IsInf(x, 0) {
		c.fail("RuntimeError", "%v cannot be converted to float32 without overflow", x)
	}
	return x
}

// element is narrow for an operation that converts a number to the element type, which may have 16 bits.
func (c *stepContext) element(x float64) float64 {
	if d := c.row.DType(); d.Narrow() && !math.IsInf(x, 0) && math.Abs(x) > d.Largest() {
		c.fail("RuntimeError", "%v cannot be converted to %v without overflow", x, d)
	}
	return c.narrow(x)
}

// alpha returns the alpha of add_, which torch rounds to the element type.
func (c *stepContext) alpha(x float64) float64 {
	if d := c.row.DType(); d.Narrow() {
		return d.Round(c.element(x))
	}
	return c.narrow(x)
}

// coupled returns the scalars of a gradient with coupled weight decay.
func (c *stepContext) coupled(maximize bool, weightDecay float64) kernel.Coupled {
	return kernel.CoupledOf(maximize, c.narrow(weightDecay))
}

// decoupled returns the factor of a parameter for decoupled weight decay. Without weight decay, torch does not multiply.
func decoupled(lr, weightDecay float64) float64 {
	if weightDecay == 0 {
		return 1
	}
	return 1 - float64(lr*weightDecay)
}

// decayRate returns the factor of decoupled weight decay: the learning rate or, corrected, lr^2 / maxLR, of Defazio, "Why Gradients
// Rapidly Increase Near the End of Training", arXiv:2506.02285.
func (c *stepContext) decayRate(lr, maxLR float64, corrected bool) float64 {
	if !corrected {
		return lr
	}
	return c.quotient(c.realPower(lr, 2), maxLR)
}

// setMaxLR makes the first learning rate the largest, if none is given.
func setMaxLR(maxLR *float64, lr float64) {
	if *maxLR == 0 {
		*maxLR = lr
	}
}

// checkMaxLR returns an error for corrected weight decay without a largest learning rate.
func checkMaxLR(optimizer string, corrected bool, maxLR float64) error {
	return require(!corrected || maxLR > 0, optimizer, "MaxLR", maxLR, "above 0 with CorrectedWeightDecay")
}

// weight returns the weight w of lerp_ for the elements of the row.
func (c *stepContext) weight(w float64) kernel.Weight {
	if c.narrow(w); c.row.Arithmetic() == engine.Float32 {
		return kernel.WeightOf[float32](w)
	}
	return kernel.WeightOf[float64](w)
}

// divisor returns the scalars to divide the square roots of the row's elements by x.
func (c *stepContext) divisor(x float64) kernel.Divisor {
	if c.row.Arithmetic() == engine.Float32 {
		return kernel.DivisorOf[float32](x)
	}
	return kernel.DivisorOf[float64](x)
}

// setNumber records the new value of a scalar state, and returns it rounded to the state's dtype.
func (c *stepContext) setNumber(state int, x float64) float64 {
	x = c.row.StateType[state].Round(x)
	c.log.changes = append(c.log.changes, change{c.i, state, c.row.Number(state), x})
	return x
}

// setTensor is setNumber for a state whose value torch converts to a tensor first.
func (c *stepContext) setTensor(state int, x float64) {
	if !c.wide {
		x = float64(float32(x))
	}
	c.setNumber(state, x)
}
