package goptim

import (
	"unsafe"

	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/goptim/internal/kernel"
)

// Float is the type of a parameter's elements, for functions that do not support 16-bit types.
type Float interface{ ~float32 | ~float64 }

// Element is the type of a parameter's elements. The arithmetic on 16-bit types is in float32: a step widens the elements of the
// parameter, the gradient and the states, and rounds each element that it stores once, to nearest even. These are the results
// of torch's fused optimizers, and of torch.optim on float32 copies that are rounded after each step.
type Element interface {
	Float | BFloat16 | Float16
}

// A BFloat16 is a number with the exponent of float32 and a mantissa of 8 bits. Its integer value is the encoding.
type BFloat16 uint16

// BFloat16FromFloat32 returns x rounded to nearest even. Numbers that are too large become infinite.
func BFloat16FromFloat32(x float32) BFloat16 { return BFloat16(kernel.NarrowBFloat16(x)) }

// Float32 returns the number, which float32 represents exactly.
func (x BFloat16) Float32() float32 { return kernel.WidenBFloat16(uint16(x)) }

// A Float16 is a number in IEEE 754's format of 16 bits, torch.float16. Its integer value is the encoding.
type Float16 uint16

// Float16FromFloat32 returns x rounded to nearest even. Numbers that are too large become infinite.
func Float16FromFloat32(x float32) Float16 { return Float16(kernel.NarrowFloat16(x)) }

// Float32 returns the number, which float32 represents exactly.
func (x Float16) Float32() float32 { return kernel.WidenFloat16(uint16(x)) }

func dtype[T Element]() engine.DType {
	switch unsafe.Sizeof(T(0)) {
	case 4:
		return engine.Float32
	case 8:
		return engine.Float64
	}
	if _, ok := any(T(0)).(BFloat16); ok {
		return engine.BFloat16
	}
	return engine.Float16
}

// elementOf returns x rounded to the type.
func elementOf[T Element](x float64) T {
	switch dtype[T]() {
	case engine.BFloat16:
		return T(BFloat16FromFloat32(float32(x)))
	case engine.Float16:
		return T(Float16FromFloat32(float32(x)))
	}
	return T(x)
}
