package lbfgs

import "math"

// arithmetic computes with Numbers as Python and torch do: a result is a tensor, rounded to its dtype, if an operand is one.
// Numbers are compared as tensors, too, if one of them is.
type arithmetic struct {
	single bool // the dtype of tensors is float32; else float64
}

func (a arithmetic) round(x float64) float64 {
	if a.single {
		return float64(float32(x))
	}
	return x
}

func (a arithmetic) tensor(x float64) Number { return Number{a.round(x), Tensor} }

// promote returns the kind of a result, and the operands converted to it.
func (a arithmetic) promote(x, y Number) (kind int, u, v float64) {
	kind = max(x.Kind, y.Kind)
	if kind == Tensor {
		return kind, a.round(x.Value), a.round(y.Value)
	}
	return kind, x.Value, y.Value
}

func (a arithmetic) number(kind int, x float64) Number {
	if kind == Tensor {
		x = a.round(x)
	}
	return Number{x, kind}
}

func (a arithmetic) add(x, y Number) Number {
	kind, u, v := a.promote(x, y)
	return a.number(kind, u+v)
}

func (a arithmetic) sub(x, y Number) Number {
	kind, u, v := a.promote(x, y)
	return a.number(kind, u-v)
}

func (a arithmetic) mul(x, y Number) Number {
	kind, u, v := a.promote(x, y)
	return a.number(kind, float64(u*v)) // the conversion keeps Go from fusing the product with a sum
}

// div multiplies a Python number by the reciprocal of a tensor, as torch does.
func (a arithmetic) div(x, y Number) Number {
	kind, u, v := a.promote(x, y)
	if y.Kind == Tensor && x.Kind != Tensor {
		return a.number(kind, u*a.round(1/v))
	}
	return a.number(max(kind, Float), u/v)
}

func (a arithmetic) abs(x Number) Number { return Number{math.Abs(x.Value), x.Kind} }

func (a arithmetic) less(x, y Number) bool {
	_, u, v := a.promote(x, y)
	return u < v
}

func (a arithmetic) lessEqual(x, y Number) bool {
	_, u, v := a.promote(x, y)
	return u <= v
}

// min and max are Python's, which return the first of two that are equal or unordered.
func (a arithmetic) min(x, y Number) Number {
	if a.less(y, x) {
		return y
	}
	return x
}

func (a arithmetic) max(x, y Number) Number {
	if a.less(x, y) {
		return y
	}
	return x
}

// overflows reports whether torch refuses a number as the alpha of add_.
func (a arithmetic) overflows(x Number) bool {
	return a.single && !math.IsInf(x.Value, 0) && math.Abs(x.Value) > math.MaxFloat32
}
