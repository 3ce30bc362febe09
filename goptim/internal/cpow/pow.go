// Package cpow implements C's pow, which Python's x ** y calls, bit for bit.
//
// It is a port of math/pow.c of ARM's optimized-routines by Szabolcs Nagy,
// which is also glibc's pow since 2.28. The tables, copyright and MIT license are
// in table.go.
package cpow

import "math"

const (
	inf    = 0x7ff << 52 // the bits of +Inf, and the exponent's mask
	one    = 0x3ff << 52 // the bits of 1
	sign   = 1 << 63     // the sign's bit
	quiet  = 1 << 51     // the bit that is set in a quiet NaN and not in a signaling one
	logOff = 0x3fe6955500000000

	// log(2) in two parts, the first with 11 trailing zeros.
	ln2Hi = 0x1.62e42fefa38p-1
	ln2Lo = 0x1.ef35793c7673p-45

	// log(1+r) = r + q + q*r*(a1 + a2*r + q*(a3 + a4*r + q*(a5 + a6*r))) with
	// q = a0*r**2, for |r| < 0x1.6bp-8.
	a0 = -0.5
	a1 = -0x1.555555555556p-1
	a2 = 0x1.0000000000006p-1
	a3 = 0x1.999999959554ep-1
	a4 = -0x1.555555529a47ap-1
	a5 = -0x1.2495b9b4845e9p+0
	a6 = 0x1.0002b8b263fc3p+0

	// 128/log(2), and -log(2)/128 in two parts.
	invLn2   = 0x1.71547652b82fep+7
	negLn2Hi = -0x1.62e42fefap-8
	negLn2Lo = -0x1.cf79abc9e3b3ap-47

	// Adding shift rounds a number to an integer, in the lowest bits.
	shift = 0x1.8p+52

	// exp(r) = 1 + r + c2*r**2 + ... for |r| < log(2)/256.
	c2 = 0x1.ffffffffffdbdp-2
	c3 = 0x1.555555555543cp-3
	c4 = 0x1.55555cf172b91p-5
	c5 = 0x1.1111167a4d017p-7
)

// Pow returns x**y. The result, including NaNs, is bit-for-bit that of glibc's pow
// (since 2.28; compared with 2.36) on x86-64 with FMA and AVX2.
//
// Optimizers need it for beta ** t, which Python computes with C's pow. [math.Pow]
// uses repeated squaring, and for .999 ** t it nearly always differs in the last
// bits.
//
// It computes exp(y*log(x)). log(x) = k*log(2) + log(c) + log(1+r), with c from a
// table, is a sum of two floats with a relative error below 1.3*2**-68; exp is
// 2**(k/128), from a table, times a polynomial. The worst error is 0.54 ULP. See
// sysdeps/ieee754/dbl-64/e_pow.c in https://sourceware.org/git/glibc.git, and for
// such tables P. T. P. Tang, ACM TOMS 15 (1989) pp. 144-157 for exp and 16 (1990)
// pp. 378-400 for log.
//
// The result is not always the nearest float, so the operations must be the same.
// The fused ones are those that gcc fuses in glibc's __pow_fma, according to its
// machine code. The other products are converted to float64, which prevents Go
// from fusing them.
//
// Special cases are those of [math.Pow] and of C23 F.10.4.4.
func Pow(x, y float64) float64 {
	ix, iy := math.Float64bits(x), math.Float64bits(y)
	var neg uint64 // the result's sign
	// Rare: x is not positive and normal, or |y| is outside [2**-65, 2**63).
	if ix>>52-1 >= 0x7fe || iy&inf>>52-0x3be >= 0x80 {
		if limit(ix) || limit(iy) {
			return powLimit(x, y)
		}
		if x < 0 && y != math.Trunc(y) {
			return math.Float64frombits(sign | inf | quiet) // the NaN of 0/0 in x86-64
		}
		if x < 0 && odd(y) {
			neg = sign
		}
		ix &^= sign
		switch ay := math.Abs(y); {
		case ix == one, ay < 0x1p-65:
			return math.Float64frombits(neg | one)
		case ay >= 0x1p63 && ix > one == (y > 0):
			return math.Inf(1)
		case ay >= 0x1p63:
			return 0
		}
		if ix>>52 == 0 { // subnormal: its exponent becomes negative
			ix = math.Float64bits(math.Abs(x)*0x1p52) - 52<<52
		}
	}
	hi, lo := log(ix)
	e := float64(y * hi)
	return exp(e, math.FMA(y, lo, math.FMA(y, hi, -e)), neg)
}

// limit reports whether the float with the bits i is 0, ±Inf or NaN.
func limit(i uint64) bool { return 2*i-1 >= 2*inf-1 }

// odd reports whether y is an odd integer.
func odd(y float64) bool {
	return math.Abs(y) < 0x1p53 && y == math.Trunc(y) && int64(y)&1 != 0
}

// signaling reports whether x is a signaling NaN.
func signaling(x float64) bool {
	return math.IsNaN(x) && math.Float64bits(x)&quiet == 0
}

// powLimit is Pow if x or y is 0, ±Inf or NaN.
func powLimit(x, y float64) float64 {
	ax := math.Abs(x)
	switch {
	case y == 0 && !signaling(x), x == 1 && !signaling(y):
		return 1
	case math.IsNaN(x) && odd(y): // glibc computes -(x*x) if x is negative
		return math.Float64frombits(math.Float64bits(x)&^sign | quiet)
	case math.IsNaN(x):
		return math.Float64frombits(math.Float64bits(x) | quiet)
	case math.IsNaN(y):
		return math.Float64frombits(math.Float64bits(y) | quiet)
	case math.IsInf(y, 0) && ax == 1:
		return 1
	case math.IsInf(y, 0) && ax < 1 == (y > 0):
		return 0
	case math.IsInf(y, 0):
		return math.Inf(1)
	case y < 0:
		ax = 1 / ax
	}
	if odd(y) {
		return math.Copysign(ax, x)
	}
	return ax
}

// log returns the logarithm of the positive float with the bits ix, as a sum of
// two floats. For a subnormal, ix has a negative exponent that overflows into the
// sign.
func log(ix uint64) (hi, lo float64) {
	// x = 2**k * z, and r = z/c - 1 is exact.
	d := ix - logOff
	t := &logTab[d>>45%128]
	k := float64(int64(d) >> 52)
	r := math.FMA(math.Float64frombits(ix-d&(0xfff<<52)), t.invc, -1)

	// s = k*log(2) + log(c) + r + a0*r**2, and lo0 to lo3 are the rounding errors.
	s0 := math.FMA(k, ln2Hi, t.logc)
	s1 := s0 + r
	ar := float64(a0 * r)
	ar2 := float64(r * ar)
	s := s1 + ar2
	lo0 := math.FMA(k, ln2Lo, t.logcTail)
	lo1 := s0 - s1 + r
	lo2 := math.FMA(ar, r, -ar2)
	lo3 := s1 - s + ar2

	p := math.FMA(r, a6, a5)
	p = math.FMA(ar2, p, math.FMA(r, a4, a3))
	p = math.FMA(ar2, p, math.FMA(r, a2, a1))
	lo = math.FMA(float64(r*ar2), p, lo0+lo1+lo2+lo3)
	hi = s + lo
	return hi, s - hi + lo
}

// Exp returns e**x. Unless x is NaN, the result is bit-for-bit that of glibc's exp (since 2.28), whose operations and tables are
// those of the last part of its pow.
func Exp(x float64) float64 {
	if math.IsNaN(x) {
		return x
	}
	return exp(x, 0, 0)
}

// Log returns the natural logarithm of x, rounded to the nearest float. Glibc's log, whose error is up to 0.519 ULP, is another
// float for a few of x in a hundred.
func Log(x float64) float64 {
	ix := math.Float64bits(x)
	if x <= 0 || limit(ix) {
		return math.Log(x)
	}
	if ix>>52 == 0 { // subnormal: its exponent becomes negative
		ix = math.Float64bits(x*0x1p52) - 52<<52
	}
	hi, _ := log(ix)
	return hi
}

// exp returns exp(x+tail), negated if neg is the sign bit.
func exp(x, tail float64, neg uint64) float64 {
	ax := math.Abs(x)
	switch {
	case ax < 0x1p-54:
		return math.Float64frombits(neg | one)
	case ax >= 1024 && x > 0:
		return math.Float64frombits(neg | inf)
	case ax >= 1024:
		return math.Float64frombits(neg)
	}
	// x + tail = k*log(2)/128 + r.
	kd := math.FMA(x, invLn2, shift)
	k := math.Float64bits(kd)
	kd -= shift
	r := math.FMA(kd, negLn2Lo, math.FMA(kd, negLn2Hi, x)) + tail

	// The result is s*(1+p).
	t := &expTab[k%128]
	s := t.bits + k<<45 + neg
	r2 := float64(r * r)
	p := math.FMA(math.FMA(c3, r, c2), r2, t.tail+r)
	p = math.FMA(math.FMA(c5, r, c4), float64(r2*r2), p)
	if ax >= 512 {
		return expFar(s, p, kd > 0)
	}
	scale := math.Float64frombits(s)
	return math.FMA(scale, p, scale)
}

// expFar is s*(1+p) if it may overflow or, if not large, underflow. The exponent
// of s may have overflowed into the sign.
func expFar(s uint64, p float64, large bool) float64 {
	if large {
		scale := math.Float64frombits(s - 1009<<52)
		return float64(0x1p1009 * math.FMA(scale, p, scale))
	}
	scale := math.Float64frombits(s + 1022<<52)
	sp := float64(scale * p)
	y := scale + sp
	if math.Abs(y) < 1 {
		// Subnormal: adding 1 rounds once to the remaining bits.
		u := math.Copysign(1, y)
		lo := scale - y + sp
		hi := u + y
		lo += u - hi + y
		y = math.Copysign(hi+lo-u, y)
	}
	return float64(0x1p-1022 * y)
}
