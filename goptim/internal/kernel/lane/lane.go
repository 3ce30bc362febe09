// Package lane stands in for package simd on a CPU without vectors, and where GOEXPERIMENT=simd is off: the same names
// and roundings on vectors of one element. (simd's own emulation rounds MulAdd twice.) It holds what the kernels use.
package lane

import "math"

// Float32s is a vector of one float32.
type Float32s struct{ x float32 }

// Float64s is a vector of one float64.
type Float64s struct{ x float64 }

// A Mask is the result of a comparison.
type Mask bool

// The masks of both widths are one.
type (
	Mask32s = Mask
	Mask64s = Mask
)

// Uint32s and Uint64s are the bits of a vector.
type (
	Uint32s struct{ x uint32 }
	Uint64s struct{ x uint64 }
)

func (a Uint32s) And(b Uint32s) Uint32s    { return Uint32s{a.x & b.x} }
func (a Uint32s) AndNot(b Uint32s) Uint32s { return Uint32s{a.x &^ b.x} }
func (a Uint32s) Or(b Uint32s) Uint32s     { return Uint32s{a.x | b.x} }
func (a Uint32s) Xor(b Uint32s) Uint32s    { return Uint32s{a.x ^ b.x} }
func (a Uint32s) BitsToFloat32() Float32s  { return Float32s{math.Float32frombits(a.x)} }
func (a Float32s) ToBits() Uint32s         { return Uint32s{math.Float32bits(a.x)} }

func (a Uint64s) And(b Uint64s) Uint64s    { return Uint64s{a.x & b.x} }
func (a Uint64s) AndNot(b Uint64s) Uint64s { return Uint64s{a.x &^ b.x} }
func (a Uint64s) Or(b Uint64s) Uint64s     { return Uint64s{a.x | b.x} }
func (a Uint64s) Xor(b Uint64s) Uint64s    { return Uint64s{a.x ^ b.x} }
func (a Uint64s) BitsToFloat64() Float64s  { return Float64s{math.Float64frombits(a.x)} }
func (a Float64s) ToBits() Uint64s         { return Uint64s{math.Float64bits(a.x)} }

// Int32s and Int64s are a mask's bits, all on or all off.
type (
	Int32s struct{ x uint32 }
	Int64s struct{ x uint64 }
)

func (m Mask) ToInt32s() Int32s  { return Int32s{uint32(m.ToInt64s().x)} }
func (a Int32s) ToBits() Uint32s { return Uint32s(a) }
func (a Int64s) ToBits() Uint64s { return Uint64s(a) }

func (m Mask) ToInt64s() Int64s {
	if m {
		return Int64s{math.MaxUint64}
	}
	return Int64s{}
}

func (m Mask) Or(o Mask) Mask { return m || o }

func BroadcastFloat32s(x float32) Float32s { return Float32s{x} }
func LoadFloat32s(s []float32) Float32s    { return Float32s{s[0]} }

func (a Float32s) Len() int                { return 1 }
func (a Float32s) Store(s []float32)       { s[0] = a.x }
func (a Float32s) Add(b Float32s) Float32s { return Float32s{a.x + b.x} }
func (a Float32s) Sub(b Float32s) Float32s { return Float32s{a.x - b.x} }
func (a Float32s) Mul(b Float32s) Float32s { return Float32s{float32(a.x * b.x)} } // the conversion forbids Go to fuse
func (a Float32s) Div(b Float32s) Float32s { return Float32s{a.x / b.x} }
func (a Float32s) Sqrt() Float32s          { return Float32s{float32(math.Sqrt(float64(a.x)))} }

func (a Float32s) Abs() Float32s { return Float32s{float32(math.Abs(float64(a.x)))} }
func (a Float32s) Neg() Float32s { return Float32s{-a.x} }

func (a Float32s) Max(b Float32s) Float32s { return Float32s{max(a.x, b.x)} }
func (a Float32s) Min(b Float32s) Float32s { return Float32s{min(a.x, b.x)} }

func (a Float32s) Greater(b Float32s) Mask  { return a.x > b.x }
func (a Float32s) Equal(b Float32s) Mask    { return a.x == b.x }
func (a Float32s) NotEqual(b Float32s) Mask { return a.x != b.x }

// IfElse is a where m holds, else b.
func (a Float32s) IfElse(m Mask, b Float32s) Float32s {
	if m {
		return a
	}
	return b
}

// MulAdd is a*b + c rounded once. The product is exact in float64; the sum is rounded to odd there, so that
// rounding it again to float32 is as if it had never been rounded (Boldo & Melquiond, "Emulation of FMA and
// correctly rounded sums: proved algorithms using rounding to odd", 2008).
func (a Float32s) MulAdd(b, c Float32s) Float32s {
	p, z := float64(a.x)*float64(b.x), float64(c.x)
	p = float64(p)
	s := p + z
	t := s - p
	lost := (p - (s - t)) + (z - t) // what the sum rounded away
	if bits := math.Float64bits(s); lost != 0 && bits&1 == 0 && !math.IsInf(s, 0) {
		if (lost > 0) == (s > 0) {
			s = math.Float64frombits(bits + 1)
		} else {
			s = math.Float64frombits(bits - 1)
		}
	}
	return Float32s{float32(s)}
}

func BroadcastFloat64s(x float64) Float64s { return Float64s{x} }
func LoadFloat64s(s []float64) Float64s    { return Float64s{s[0]} }

func (a Float64s) Len() int                      { return 1 }
func (a Float64s) Store(s []float64)             { s[0] = a.x }
func (a Float64s) Add(b Float64s) Float64s       { return Float64s{a.x + b.x} }
func (a Float64s) Sub(b Float64s) Float64s       { return Float64s{a.x - b.x} }
func (a Float64s) Mul(b Float64s) Float64s       { return Float64s{float64(a.x * b.x)} }
func (a Float64s) Div(b Float64s) Float64s       { return Float64s{a.x / b.x} }
func (a Float64s) Sqrt() Float64s                { return Float64s{math.Sqrt(a.x)} }
func (a Float64s) MulAdd(b, c Float64s) Float64s { return Float64s{math.FMA(a.x, b.x, c.x)} }

func (a Float64s) Abs() Float64s { return Float64s{math.Abs(a.x)} }
func (a Float64s) Neg() Float64s { return Float64s{-a.x} }

func (a Float64s) Max(b Float64s) Float64s { return Float64s{max(a.x, b.x)} }
func (a Float64s) Min(b Float64s) Float64s { return Float64s{min(a.x, b.x)} }

func (a Float64s) Greater(b Float64s) Mask  { return a.x > b.x }
func (a Float64s) Equal(b Float64s) Mask    { return a.x == b.x }
func (a Float64s) NotEqual(b Float64s) Mask { return a.x != b.x }

// IfElse is a where m holds, else b.
func (a Float64s) IfElse(m Mask, b Float64s) Float64s {
	if m {
		return a
	}
	return b
}
