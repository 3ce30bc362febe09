// Package lane replaces package archsimd on CPUs without vectors and in builds without GOEXPERIMENT=simd. Its vectors have one
// element, and the methods that the kernels use have the same names and rounding.
package lane

import "math"

// A vector of one element.
type (
	Float32x1 struct{ x float32 }
	Float64x1 struct{ x float64 }
)

// The bits of a vector.
type (
	Uint32x1 struct{ x uint32 }
	Uint64x1 struct{ x uint64 }
)

func (a Uint32x1) And(b Uint32x1) Uint32x1    { return Uint32x1{a.x & b.x} }
func (a Uint32x1) AndNot(b Uint32x1) Uint32x1 { return Uint32x1{a.x &^ b.x} }
func (a Uint32x1) Or(b Uint32x1) Uint32x1     { return Uint32x1{a.x | b.x} }
func (a Uint32x1) Xor(b Uint32x1) Uint32x1    { return Uint32x1{a.x ^ b.x} }
func (a Uint32x1) BitsToFloat32() Float32x1   { return Float32x1{math.Float32frombits(a.x)} }
func (a Float32x1) ToBits() Uint32x1          { return Uint32x1{math.Float32bits(a.x)} }

func (a Uint64x1) And(b Uint64x1) Uint64x1    { return Uint64x1{a.x & b.x} }
func (a Uint64x1) AndNot(b Uint64x1) Uint64x1 { return Uint64x1{a.x &^ b.x} }
func (a Uint64x1) Or(b Uint64x1) Uint64x1     { return Uint64x1{a.x | b.x} }
func (a Uint64x1) Xor(b Uint64x1) Uint64x1    { return Uint64x1{a.x ^ b.x} }
func (a Uint64x1) BitsToFloat64() Float64x1   { return Float64x1{math.Float64frombits(a.x)} }
func (a Float64x1) ToBits() Uint64x1          { return Uint64x1{math.Float64bits(a.x)} }

// A Mask is the result of a comparison.
type Mask bool

// The bits of a mask, all set or none.
type (
	Int32x1 struct{ x uint32 }
	Int64x1 struct{ x uint64 }
)

func (m Mask) ToInt32x1() Int32x1  { return Int32x1{uint32(m.ToInt64x1().x)} }
func (a Int32x1) ToBits() Uint32x1 { return Uint32x1(a) }
func (a Int64x1) ToBits() Uint64x1 { return Uint64x1(a) }

func (m Mask) ToInt64x1() Int64x1 {
	if m {
		return Int64x1{math.MaxUint64}
	}
	return Int64x1{}
}

func BroadcastFloat32x1(x float32) Float32x1 { return Float32x1{x} }

func (a Float32x1) Add(b Float32x1) Float32x1 { return Float32x1{a.x + b.x} }
func (a Float32x1) Sub(b Float32x1) Float32x1 { return Float32x1{a.x - b.x} }
func (a Float32x1) Mul(b Float32x1) Float32x1 { return Float32x1{float32(a.x * b.x)} } // without the conversion, Go may fuse the product
func (a Float32x1) Div(b Float32x1) Float32x1 { return Float32x1{a.x / b.x} }
func (a Float32x1) Sqrt() Float32x1           { return Float32x1{float32(math.Sqrt(float64(a.x)))} }
func (a Float32x1) Max(b Float32x1) Float32x1 { return Float32x1{max(a.x, b.x)} }
func (a Float32x1) Min(b Float32x1) Float32x1 { return Float32x1{min(a.x, b.x)} }
func (a Float32x1) Greater(b Float32x1) Mask  { return a.x > b.x }
func (a Float32x1) Equal(b Float32x1) Mask    { return a.x == b.x }
func (a Float32x1) NotEqual(b Float32x1) Mask { return a.x != b.x }

// MulAdd is a*b + c rounded once. The product is exact in float64. The sum is rounded to odd there, so rounding it again to
// float32 gives the same result as a single rounding (Boldo & Melquiond, "Emulation of FMA and correctly rounded sums:
// proved algorithms using rounding to odd", 2008).
func (a Float32x1) MulAdd(b, c Float32x1) Float32x1 {
	p, z := float64(a.x)*float64(b.x), float64(c.x)
	p = float64(p)
	s := p + z
	t := s - p
	lost := (p - (s - t)) + (z - t) // the rounding error of the sum
	if bits := math.Float64bits(s); lost != 0 && bits&1 == 0 && !math.IsInf(s, 0) {
		if (lost > 0) == (s > 0) {
			s = math.Float64frombits(bits + 1)
		} else {
			s = math.Float64frombits(bits - 1)
		}
	}
	return Float32x1{float32(s)}
}

// FMA32 is MulAdd for numbers.
func FMA32(a, b, c float32) float32 { return Float32x1{a}.MulAdd(Float32x1{b}, Float32x1{c}).x }

func BroadcastFloat64x1(x float64) Float64x1 { return Float64x1{x} }

func (a Float64x1) Add(b Float64x1) Float64x1       { return Float64x1{a.x + b.x} }
func (a Float64x1) Sub(b Float64x1) Float64x1       { return Float64x1{a.x - b.x} }
func (a Float64x1) Mul(b Float64x1) Float64x1       { return Float64x1{float64(a.x * b.x)} }
func (a Float64x1) Div(b Float64x1) Float64x1       { return Float64x1{a.x / b.x} }
func (a Float64x1) Sqrt() Float64x1                 { return Float64x1{math.Sqrt(a.x)} }
func (a Float64x1) MulAdd(b, c Float64x1) Float64x1 { return Float64x1{math.FMA(a.x, b.x, c.x)} }
func (a Float64x1) Max(b Float64x1) Float64x1       { return Float64x1{max(a.x, b.x)} }
func (a Float64x1) Min(b Float64x1) Float64x1       { return Float64x1{min(a.x, b.x)} }
func (a Float64x1) Greater(b Float64x1) Mask        { return a.x > b.x }
func (a Float64x1) Equal(b Float64x1) Mask          { return a.x == b.x }
func (a Float64x1) NotEqual(b Float64x1) Mask       { return a.x != b.x }
