package kernel

// The scalars of one step, derived in float64 from an optimizer's options, in torch's order, once for many rows.
// Flags are numbers too, 0 or 1: a kernel spreads all over its vectors alike.

// Adam holds those of Adam, AdamW and AMSGrad.
type Adam struct {
	Sign        float64 // -1 to maximize
	Coupled     float64 // flag: WeightDecay is added to the gradient
	WeightDecay float64
	Decay       float64 // decoupled: 1 - lr*weight_decay; 1 where there is none
	C1          Weight  // 1 - beta1
	Beta2, C2   float64 // beta2, 1 - beta2
	Step        float64 // -lr / (1 - beta1^t)
	BC2Sqrt     Divisor // sqrt(1 - beta2^t)
	Eps         float64
}

// SGD holds those of SGD.
type SGD struct {
	Sign        float64 // -1 to maximize
	Coupled     float64 // flag: WeightDecay is added to the gradient
	WeightDecay float64
	First       float64 // flag: the buffer holds nothing yet
	Momentum    float64
	C           float64 // 1 - dampening
	Nesterov    float64 // flag
	Step        float64 // -lr
}

// Flag is a flag among scalars.
func Flag(on bool) float64 {
	if on {
		return 1
	}
	return 0
}

// Sign is the factor of the gradient.
func Sign(maximize bool) float64 {
	if maximize {
		return -1
	}
	return 1
}

// A Weight is lerp's, with the end that torch starts from: x for |w| < 0.5, else end.
type Weight struct {
	W     float64
	FromX float64 // flag
}

// WeightOf is the weight w for elements of type T.
func WeightOf[T Float](w float64) Weight {
	if t := T(w); t <= -0.5 || t >= 0.5 {
		return Weight{W: float64(-(1 - t))}
	}
	return Weight{W: w, FromX: 1}
}

// A Divisor divides square roots by one number without the CPU's divider, for which Adam's other operations wait, and
// with a division's bits: Brisebarre, Muller & Raina, "Accelerating Correctly Rounded Floating-Point Division when the
// Divisor Is Known in Advance", IEEE Transactions on Computers 53 (2004), section 1. A root is far from where the
// remainder would underflow, unless the divisor is Extreme.
type Divisor struct {
	By    float64
	Recip float64 // 1 / By, rounded to the elements' type once
}

// DivisorOf is the divisor x for elements of type T.
func DivisorOf[T Float](x float64) Divisor { return Divisor{By: x, Recip: float64(1 / T(x))} }

// Extreme reports whether only a division will do.
func (d *Divisor) Extreme() bool { return !(d.By >= 0x1p-40 && d.By <= 0x1p40) }
