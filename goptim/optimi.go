package goptim

import "github.com/goptim/goptim/goptim/internal/kernel"

// Optimizers of the Python package torch-optimi have averages without bias corrections, whose weights change from step to step
// instead, and weight decay that may be independent of the learning rate.

// debiased returns the decay rate of step t with which an average that starts at zero is unbiased.
func (c *stepContext) debiased(beta, t float64) float64 {
	power := c.power(beta, t, "TypeError")
	return c.quotient(power-beta, power-1)
}

// decoupledRate returns the factor of decoupled weight decay: lr, or lr / maxLR if maxLR is not 0.
func decoupledRate(lr, maxLR float64) float64 {
	if maxLR != 0 {
		return lr / maxLR
	}
	return lr
}

// completeMaxLR makes the first learning rate the largest, if none is given and one is needed.
func completeMaxLR(maxLR *float64, lr float64, decoupled bool) {
	if decoupled {
		setMaxLR(maxLR, lr)
	}
}

// checkDecoupled returns an error for weight decay that is independent of the learning rate without a largest one.
func checkDecoupled(optimizer string, decoupled bool, maxLR float64) error {
	return require(!decoupled || maxLR > 0, optimizer, "MaxLR", maxLR, "above 0 with DecoupleLR")
}

// optimiRate returns the factor of decoupled weight decay: lr, or lr / maxLR if it is decoupled from the learning rate.
func (c *stepContext) optimiRate(lr, maxLR float64, decoupleLR bool) float64 {
	if decoupleLR {
		return c.quotient(lr, maxLR)
	}
	return lr
}

// optimiDecay returns the scalars of the gradient and the factor of the parameter for weight decay.
func (c *stepContext) optimiDecay(lr, weightDecay, maxLR float64, decoupleWD, decoupleLR bool) (kernel.Coupled, float64) {
	if weightDecay == 0 {
		return kernel.CoupledOf(false, 0), 1
	}
	if !decoupleWD && !decoupleLR {
		return c.coupled(false, weightDecay), 1
	}
	return kernel.CoupledOf(false, 0), unlessZero(1 - float64(c.optimiRate(lr, maxLR, decoupleLR)*weightDecay))
}

// unlessZero returns a factor or a divisor for weight decay. torch-optimi does not apply one that is 0.
func unlessZero(x float64) float64 {
	if x == 0 {
		return 1
	}
	return x
}
