package kernel

import "math"

// The scalars of one step are computed in float64 from an optimizer's options, in torch's order, once for many rows. Flags are
// the numbers 0 and 1, because a kernel broadcasts all scalars in the same way.

// Coupled has the scalars of a gradient with coupled weight decay.
type Coupled struct {
	Sign        float64 // -1 to maximize
	Couples     float64 // flag: add WeightDecay to the gradient
	WeightDecay float64 // -0 for none, since adding a product with it does not change a sum
}

// CoupledOf returns the scalars that most optimizers use.
func CoupledOf(maximize bool, weightDecay float64) Coupled {
	if weightDecay == 0 {
		weightDecay = math.Copysign(0, -1)
	}
	return Coupled{Sign: Sign(maximize), Couples: Flag(weightDecay != 0), WeightDecay: weightDecay}
}

// Scale makes the kernel multiply the gradient by x first, in the product with Sign. It reports whether the results are those of
// two products. With -x, they may differ in rounding modes other than the nearest.
func (c *Coupled) Scale(x float64) bool {
	if c.Sign != 1 {
		return false
	}
	c.Sign = x
	return true
}

// Adam has the scalars of Adam, AdamW and AMSGrad.
type Adam struct {
	Coupled
	Decay     float64 // decoupled: 1 - lr*weight_decay; 1 for none
	C1        Weight  // 1 - beta1
	Beta2, C2 float64 // beta2, 1 - beta2
	Step      float64 // -lr / (1 - beta1^t)
	BC2Sqrt   Divisor // sqrt(1 - beta2^t)
	Eps       float64
}

// SGD has the scalars of SGD.
type SGD struct {
	Coupled
	First    float64 // flag: the buffer is uninitialized
	Momentum float64
	C        float64 // 1 - dampening
	Nesterov float64 // flag
	Step     float64 // -lr
}

// Scale is that of Coupled. The first buffer is a copy of the gradient, without a product.
func (s *SGD) Scale(x float64) bool { return s.First == 0 && s.Coupled.Scale(x) }

// Adagrad has the scalars of Adagrad.
type Adagrad struct {
	Coupled
	Step float64 // -lr / (1 + (t-1)*lr_decay)
	Eps  float64
}

// Adadelta has the scalars of Adadelta.
type Adadelta struct {
	Coupled
	Rho, C float64 // rho, 1 - rho
	Eps    float64
	Step   float64 // -lr
}

// Adamax has the scalars of Adamax.
type Adamax struct {
	Coupled
	C1    Weight // 1 - beta1
	Beta2 float64
	Eps   float64
	Step  float64 // -lr / (1 - beta1^t)
}

// ASGD has the scalars of averaged SGD.
type ASGD struct {
	Coupled
	Decay    float64 // 1 - lambd*eta
	Step     float64 // -eta
	Mu       float64
	Averages float64 // flag: Mu is not 1
}

// NAdam has the scalars of NAdam.
type NAdam struct {
	Coupled
	Decay        float64 // decoupled: 1 - lr*weight_decay; 1 for none
	C1           Weight  // 1 - beta1
	Beta2, C2    float64 // beta2, 1 - beta2
	BC2          float64 // 1 - beta2^t
	Eps          float64
	StepG, StepM float64 // of the gradient and of exp_avg
}

// RAdam has the scalars of RAdam.
type RAdam struct {
	Coupled
	Decay     float64 // decoupled: 1 - lr*weight_decay; 1 for none
	C1        Weight  // 1 - beta1
	Beta2, C2 float64 // beta2, 1 - beta2
	BC1       float64 // 1 - beta1^t
	LR        float64
	Rectified float64 // flag: the variance is tractable, and the following fields are used
	BC2Sqrt   float64 // sqrt(1 - beta2^t)
	Eps       float64
	Rect      float64 // the rectification
}

// RMSprop has the scalars of RMSprop.
type RMSprop struct {
	Coupled
	Alpha, C float64 // alpha, 1 - alpha
	Centre   Weight  // 1 - alpha
	Eps      float64
	Momentum float64
	Step     float64 // -lr
}

// Rprop has the scalars of Rprop.
type Rprop struct {
	Sign        float64 // -1 to maximize
	Plus, Minus float64 // factors of the step size if the sign of the gradient stays the same, and if it changes
	EtaMinus    float64 // a gradient with this factor is set to 0
	Unusual     float64 // flag: other gradients have this factor too, or Min or Max is NaN
	Min, Max    float64 // of the step size
}

// Lion has the scalars of Lion.
type Lion struct {
	Sign      float64 // -1 to maximize; only with Lerps
	Decay     float64 // 1 - lr*weight_decay
	Beta1, C1 float64 // beta1, 1 - beta1
	Beta2, C2 float64 // beta2, 1 - beta2
	Lerps     float64 // flag: the averages are lerps, with the weights W1 and W2
	W1, W2    Weight  // 1 - beta1, 1 - beta2
	Step      float64 // -lr
	Caution           // only with Lerps
}

// Scale is that of Coupled, for averages that are lerps.
func (l *Lion) Scale(x float64) bool {
	if l.Lerps == 0 || l.Sign != 1 {
		return false
	}
	l.Sign = x
	return true
}

// ScheduleFree has the scalars of AdamWScheduleFree and RAdamScheduleFree.
type ScheduleFree struct {
	Beta2, C2   float64 // beta2, 1 - beta2
	Normalizes  float64 // flag: divide the gradient by the root of exp_avg_sq
	BC2         float64 // 1 - beta2^t
	Eps         float64
	Couples     float64 // flag: add WeightDecay to the gradient
	WeightDecay float64 // -0 for none; see Coupled
	CK          Weight  // of z in the average
	Step        float64 // of the parameter: lr * (beta1 * (1-ck) - 1)
	Minus       float64 // of z: -lr
}

// SGDScheduleFree has the scalars of SGDScheduleFree: the last five.
type SGDScheduleFree struct{ ScheduleFree }

// Caution has the scalars of cautious updates.
type Caution struct {
	Cautious float64 // flag: mask the elements of the update whose sign is not that of the gradient
	Inverse  float64 // what the others are multiplied by: 1 / the share of them
}

// CautionOf returns the scalars before the share is known.
func CautionOf(cautious bool) Caution { return Caution{Cautious: Flag(cautious), Inverse: 1} }

// Clipping has the scalars of a bound of the root mean square of an update.
type Clipping struct {
	Threshold float64 // 0 for none
	Excess    float64 // the factor of the denominators
}

// ClippingOf returns the scalars before the root mean square is known.
func ClippingOf(threshold float64) Clipping { return Clipping{Threshold: threshold, Excess: 1} }

// AdamWLegacy has the scalars of AdamWLegacy.
type AdamWLegacy struct {
	Adam
	Caution
	Clipping
}

// ADOPT has the scalars of ADOPT.
type ADOPT struct {
	Coupled
	Caution
	First     float64 // flag: the first step, which changes exp_avg_sq alone
	Decays    float64 // flag: use Decay
	Decay     float64 // decoupled: -lr*weight_decay; -0 for none
	C1        Weight  // 1 - beta1
	Beta2, C2 float64 // beta2, 1 - beta2
	Eps       float64
	Clip      float64 // largest magnitude of an element of the normalized gradient
	Step      float64 // -lr
}

// NAdamW has the scalars of NAdamW.
type NAdamW struct {
	Coupled // only its Sign is used
	Caution
	Clipping
	Decay     float64 // 1 - lr*weight_decay
	C1        Weight  // 1 - beta1
	Beta2, C2 float64 // beta2, 1 - beta2
	Step      float64 // -lr / (1 - beta1^t)
	BC2Sqrt   Divisor // sqrt(1 - beta2^t)
	Eps       float64
}

// SGDW has the scalars of SGDW.
type SGDW struct {
	SGD
	Caution
	Decay float64 // 1 - lr*weight_decay
}

// LAMB has the scalars of LAMB.
type LAMB struct {
	Caution
	Total       float64 // divisor of the gradient
	Averages    float64 // flag: exp_avg is an average with the weight C1, and otherwise Beta1 times itself plus the gradient
	C1          Weight  // 1 - beta1
	Beta1       float64
	Beta2, C2   float64 // beta2, 1 - beta2
	BC1         float64 // 1 - beta1^t
	BC2Sqrt     Divisor // sqrt(1 - beta2^t)
	Eps         float64
	Couples     float64 // flag: add WeightDecay times the parameter to the update
	WeightDecay float64
	Decays      float64 // flag: add Decay times the parameter to itself
	Decay       float64
	Trust       float64 // factor of the update, from the norms of the parameter and of the update
	Step        float64 // -lr

	// The kernel does not read these.
	Adapts    float64 // flag: Trust is not 1
	Clips     float64 // flag: Trust is at most 1
	MaxNorm   float64 // of all gradients; 0 for none
	ParamNorm float64
}

// Prodigy has the scalars of Prodigy.
type Prodigy struct {
	Coupled
	Beta1, C1 float64 // beta1, d * (1 - beta1)
	Beta2, C2 float64 // beta2, d^2 * (1 - beta2)
	Beta3, C3 float64 // beta3, the weight of the gradient in s
	Decays    float64 // flag: add Decay times the parameter to itself
	Decay     float64 // -lr * weight_decay
	Eps       float64 // eps times the new d
	Step      float64 // -lr; without exp_avg times the new d
	Estimates float64 // flag: the gradient changes the states and the estimate of d

	// The kernels do not read these.
	Weight float64 // of the product of the gradient and the distance
	Rate   float64 // the learning rate: d times the option, and the bias correction
}

// LARS has the scalars of LARS.
type LARS struct {
	Adapts      float64 // flag: add WeightDecay times the parameter to the gradient, and multiply it by Trust
	WeightDecay float64
	Trust       float64 // from the norms of the parameter and the gradient
	First       float64 // flag: the buffer is uninitialized
	Momentum    float64
	C           float64 // 1 - dampening
	Nesterov    float64 // flag
	Step        float64 // -lr

	// The kernel does not read these, from which Trust is computed.
	TrustCoeff, Eps, LR float64
	Clips               float64 // flag: Trust is divided by LR, and then at most 1
	ParamNorm           float64
}

// RMSpropTF has the scalars of RMSpropTF.
type RMSpropTF struct {
	Coupled
	Caution
	Decay      float64 // decoupled: 1 - lr*weight_decay; 1 for none
	C          float64 // 1 - alpha
	Eps        float64
	Momentum   float64
	LRInBuffer float64 // flag: the momentum buffer contains the learning rate
	LR         float64
}

// RMSpropTFLike has the scalars of RMSpropTFLike.
type RMSpropTFLike struct {
	Coupled
	Alpha, C float64 // alpha, 1 - alpha
	Eps      float64
	Momentum float64
	Step     float64 // -lr
}

// Adan has the scalars of Adan.
type Adan struct {
	Coupled           // only its Sign is used
	First     float64 // flag: neg_pre_grad is the negated gradient
	Decay     float64 // 1 - lr*weight_decay, or 1
	Shrink    float64 // 1, or the divisor 1 + lr*weight_decay
	C1        Weight  // 1 - beta1
	Beta2, C2 float64 // beta2, 1 - beta2
	Beta3, C3 float64 // beta3, 1 - beta3
	Step      float64 // -lr / (1 - beta1^t)
	StepDiff  float64 // -lr*beta2 / (1 - beta2^t)
	BC3Sqrt   Divisor // sqrt(1 - beta3^t)
	Eps       float64
	Caution
}

// AdEMAMix has the scalars of AdEMAMix.
type AdEMAMix struct {
	Coupled           // only its Sign without Lerps
	Decay     float64 // decoupled: 1 - lr*weight_decay; 1 for none
	Lerps     float64 // flag: the averages are lerps, with the weights W1 and W3
	W1, W3    Weight  // 1 - beta1, 1 - beta3
	Beta1, C1 float64 // beta1, 1 - beta1
	Beta2, C2 float64 // beta2, 1 - beta2
	Beta3, C3 float64 // beta3, 1 - beta3
	BC1       float64 // 1 - beta1^t
	BC2Sqrt   Divisor // sqrt(1 - beta2^t)
	Alpha     float64 // weight of the slow average
	Eps       float64
	Step      float64 // -lr
}

// StableAdamW has the scalars of StableAdamW. The last three depend on the root mean square of the normalized gradient.
type StableAdamW struct {
	Coupled           // only its Sign is used
	C1        Weight  // 1 - beta1, debiased
	Beta2, C2 float64 // beta2, debiased, and 1 minus that
	Eps       float64
	EpsSq     float64 // the smallest second moment in the root mean square
	Decay     float64 // 1 - lr*weight_decay; 1 for none
	Step      float64 // -lr

	// The kernel does not read these, from which Decay and Step are computed.
	LR, WeightDecay float64
	MaxLR           float64 // 0, or what LR is divided by in Decay
}

// OptimiAdam has the scalars of torch-optimi's Adam, AdamW and RAdam.
type OptimiAdam struct {
	Coupled
	Decay      float64 // decoupled: 1 - lr*weight_decay; 1 for none
	C1         Weight  // 1 - beta1, debiased
	Beta2, C2  float64 // beta2, debiased, and 1 minus that
	Normalizes float64 // flag: divide the update by the root of exp_avg_sq
	Eps        float64
	Step       float64 // -lr, times the rectification of RAdam
}

// OptimiSGD has the scalars of torch-optimi's SGD.
type OptimiSGD struct {
	Coupled
	Decay    float64 // decoupled: 1 - lr*weight_decay; 1 for none
	Clears   float64 // flag: the buffer is uninitialized, and zero before the step
	Starts   float64 // flag: the buffer is uninitialized, and the gradient before the step; only with Averages
	Averages float64 // flag: the buffer is an average with the weight C, and otherwise Momentum times itself plus the gradient
	C        Weight  // 1 - momentum
	Momentum float64
	Step     float64 // -lr
}

// OptimiAdan has the scalars of torch-optimi's Adan.
type OptimiAdan struct {
	Coupled           // only its Sign is used
	First     float64 // flag: prev_grad is the negated gradient
	Shrink    float64 // 1, or the divisor 1 + lr*weight_decay
	C1, C2    Weight  // 1 - beta1, 1 - beta2, debiased
	Beta2     float64 // beta2
	Beta3, C3 float64 // beta3, debiased, and 1 minus that
	Step      float64 // -lr
	StepDiff  float64 // -lr*beta2
	Eps       float64
}

// LaProp has the scalars of LaProp.
type LaProp struct {
	Coupled           // only its Sign is used
	Beta1, C1 float64 // beta1, lr * (1 - beta1)
	Beta2, C2 float64 // beta2, 1 - beta2
	BC2       float64 // the average of ones with beta2
	Eps       float64
	Step      float64 // -lr, divided by the average of learning rates
	Decays    float64 // flag: use Decay
	Decay     float64 // -lr*weight_decay; -0 for none
	Caution
}

// SparseAdam has the scalars of SparseAdam.
type SparseAdam struct {
	Sign   float64 // -1 to maximize
	C1, C2 float64 // 1 - beta1, 1 - beta2
	Eps    float64
	Step   float64 // -lr * sqrt(1 - beta2^t) / (1 - beta1^t)
}

// Adafactor has the scalars of Adafactor, and of one matrix or row at a time. For AdafactorRow, Mean is between 2^-30
// and 2^60, products of row_var and col_var are at most 2^60, and EpsSq is at least 2^-60. So if the remainder of a division
// underflows, the quotient is less than EpsSq.
type Adafactor struct {
	Sign       float64 // -1 to maximize
	W          Weight  // t^beta2_decay
	Eps1       float64
	EpsSq      float64 // eps1^2
	Rows, Cols float64 // of a matrix
	Fused      float64 // flag: see reduce.Order
	N          float64 // number of squares in a mean
	Row        float64 // a row's row_var
	Mean       float64 // mean of row_var, at least eps1
	Decay      float64 // 1 - lr*weight_decay; 1 for none
	Step       float64 // of the clipped update
}

// HFAdafactor has the scalars of Hugging Face's Adafactor, and of one matrix or row at a time.
type HFAdafactor struct {
	Eps1      float64
	Beta2, C2 float64 // 1 - t^decay_rate, and 1 minus that
	Mean      float64 // of exp_avg_sq_row
	Row       float64 // a row's factor
	Clip      float64 // divisor of the update
	LR        float64
	Beta1, C1 float64 // beta1, 1 - beta1
	Decays    float64 // flag: apply weight decay
	Decay     float64 // -weight_decay * lr
}

// None has no scalars.
type None struct{}

// MuonMomentum has the scalars of Muon before the orthogonalization.
type MuonMomentum struct {
	C        Weight // 1 - momentum
	Momentum Weight
	Nesterov float64 // flag
}

// MuonUpdate has the scalars of Muon after the orthogonalization.
type MuonUpdate struct {
	Decay float64 // 1 - lr*weight_decay
	Step  float64 // -lr, adjusted to the shape
}

// AuxAdam has the scalars of the Adam half of MuonWithAuxAdam.
type AuxAdam struct {
	Decay    float64 // 1 - lr*weight_decay
	C1, C2   Weight  // 1 - beta1, 1 - beta2
	BC1, BC2 float64 // 1 - beta1^t, 1 - beta2^t
	Eps      float64
	Step     float64 // -lr
}

// Combine has the factors of four vectors.
type Combine struct{ A [4]float64 }

// Average has the scalars of an average of parameters.
type Average struct {
	Weight  Weight  // of the parameter, in lerp
	Keep, C float64 // factors of the average and of the parameter
	N       float64 // number of averaged parameters, with this one
}

// Lookahead has the scalar of Lookahead's slow weights.
type Lookahead struct{ Alpha float64 }

// SAM has the scalars of the perturbation of sharpness-aware minimization.
type SAM struct {
	Scale    float64 // rho / norm of the gradients
	Adaptive float64 // flag: multiply the gradient by the square of the parameter
}

// Factor has the scalar of an operation with one.
type Factor struct{ X float64 }

// Clamp has the bounds of clamp.
type Clamp struct{ Min, Max float64 }

// Flag converts a flag to a scalar.
func Flag(on bool) float64 {
	if on {
		return 1
	}
	return 0
}

// Sign returns the factor of the gradient.
func Sign(maximize bool) float64 { return 1 - 2*Flag(maximize) }

// A Weight is the weight of lerp, and the operand that torch starts from: x for |w| < 0.5, else end.
type Weight struct {
	W     float64
	FromX float64 // flag
}

// WeightOf returns the weight w for elements of type T.
func WeightOf[T Float](w float64) Weight {
	if t := T(w); t <= -0.5 || t >= 0.5 {
		return Weight{W: float64(t - 1)} // 0, not -0, for 1
	}
	return Weight{W: w, FromX: 1}
}

// A Divisor divides square roots by a constant without the CPU's divider, for which Adam's other operations wait. The result is
// rounded as a division: Brisebarre, Muller & Raina, "Accelerating Correctly Rounded Floating-Point Division when the
// Divisor Is Known in Advance", IEEE Transactions on Computers 53 (2004), section 1. The
// remainder of a root does not underflow unless the divisor is Extreme.
type Divisor struct {
	By    float64
	Recip float64 // 1 / By, rounded to the elements' type once
}

// DivisorOf returns the divisor x for elements of type T.
func DivisorOf[T Float](x float64) Divisor { return Divisor{By: x, Recip: float64(1 / T(x))} }

// Extreme reports whether a true division is required.
func (d *Divisor) Extreme() bool { return !(d.By >= 0x1p-40 && d.By <= 0x1p40) }
