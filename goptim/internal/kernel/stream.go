package kernel

import (
	"math"
	"slices"
)

// These operations read and write 16 bits for a single operation of arithmetic, so they are bound by memory. A kernel between two
// conversions, as in ApplyMixed, would take twice as long.

// MultiplyNarrow is a Func for operands of 16 bits of one format: the parameter becomes the product of the gradient and h.X. f has the
// same results for float32. It returns the largest magnitude in the gradient, or NaN if an element is NaN.
func MultiplyNarrow(f Func[Factor, float32], h *Factor, o Operands, n int) float32 {
	most := uint32(0)
	var lanes [16]uint32
	whole := n &^ (group - 1)
	if whole > 0 {
		if productVectors((*uint16)(o.Param.Address), (*uint16)(o.Grad.Address), o.Param.Format, whole, float32(h.X), &lanes) {
			most = slices.Max(lanes[:])
		} else {
			whole = 0
		}
	}
	for i := whole; i < n; i++ {
		most = max(most, math.Float32bits(o.Grad.number(i))&math.MaxInt32)
	}
	if whole < n {
		rest := o.from(whole)
		ApplyMixed(f, h, &rest, n-whole)
	}
	return math.Float32frombits(most)
}

// LerpNarrow is a Func for operands of 16 bits of one format, the kernel AverageLerp, which f is for float32.
func LerpNarrow(f Func[Average, float32], h *Average, o Operands, n int) {
	whole := n &^ (group - 1)
	ofG := uint32(0)
	if h.Weight.FromX == 0 {
		ofG = math.MaxUint32
	}
	if whole > 0 && !lerpVectors((*uint16)(o.Param.Address), (*uint16)(o.Grad.Address), o.Param.Format, whole, float32(h.Weight.W), ofG) {
		whole = 0
	}
	if whole < n {
		rest := o.from(whole)
		ApplyMixed(f, h, &rest, n-whole)
	}
}

// number returns element i of an operand of 16 bits.
func (b *Operand) number(i int) float32 {
	x := *(*uint16)(b.at(i))
	if b.Format == BFloat16 {
		return WidenBFloat16(x)
	}
	return WidenFloat16(x)
}

// from returns the operands from element i on, without states.
func (o *Operands) from(i int) Operands {
	return Operands{Param: Operand{o.Param.at(i), o.Param.Format}, Grad: Operand{o.Grad.at(i), o.Grad.Format}}
}
