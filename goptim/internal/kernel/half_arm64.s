//go:build goexperiment.simd

#include "textflag.h"

// All functions convert n elements, a positive multiple of 32. Those that widen prefetch what follows by a distance in bytes.

// Go's assembler does not have these instructions. Their operands are numbers of registers.
#define FCVTL(n, d) WORD $(0x0e217800 | (n)<<5 | (d)) // the lower half of n
#define FCVTL2(n, d) WORD $(0x4e217800 | (n)<<5 | (d)) // the upper half of n
#define FCVTN(n, d) WORD $(0x0e216800 | (n)<<5 | (d)) // to the lower half of d
#define FCVTN2(n, d) WORD $(0x4e216800 | (n)<<5 | (d)) // to the upper half of d
#define ORDERED(n, d) WORD $(0x4e20e400 | (n)<<16 | (n)<<5 | (d)) // FCMEQ n, n
#define MULTIPLY(m, n, d) WORD $(0x4ea09c00 | (m)<<16 | (n)<<5 | (d)) // MUL
#define FADD(m, n, d) WORD $(0x4e20d400 | (m)<<16 | (n)<<5 | (d)) // n + m
#define FSUB(m, n, d) WORD $(0x4ea0d400 | (m)<<16 | (n)<<5 | (d)) // n - m

// USUAL sets the floating-point state to the usual one, since FCVTN depends on the rounding mode. BEFORE restores it.
#define USUAL \
	MOVD FPCR, R5; \
	CBZ  R5, next; \
	MOVD ZR, FPCR

#define BEFORE \
	CBZ  R5, done; \
	MOVD R5, FPCR; \
done: \
	RET

// func widenBFloat16(to *float32, from *uint16, n, ahead int)
TEXT ·widenBFloat16(SB), NOSPLIT, $0-32
	MOVD to+0(FP), R0
	MOVD from+8(FP), R1
	MOVD n+16(FP), R2
	MOVD ahead+24(FP), R3
	VEOR V31.B16, V31.B16, V31.B16
next:
	ADD    R3, R1, R4
	PRFM   (R4), PLDL2KEEP
	VLD1.P 64(R1), [V0.H8, V1.H8, V2.H8, V3.H8]
	VZIP1  V0.H8, V31.H8, V4.H8
	VZIP2  V0.H8, V31.H8, V5.H8
	VZIP1  V1.H8, V31.H8, V6.H8
	VZIP2  V1.H8, V31.H8, V7.H8
	VZIP1  V2.H8, V31.H8, V16.H8
	VZIP2  V2.H8, V31.H8, V17.H8
	VZIP1  V3.H8, V31.H8, V18.H8
	VZIP2  V3.H8, V31.H8, V19.H8
	VST1.P [V4.S4, V5.S4, V6.S4, V7.S4], 64(R0)
	VST1.P [V16.S4, V17.S4, V18.S4, V19.S4], 64(R0)
	SUBS   $32, R2, R2
	BNE    next
	RET

// func widenFloat16(to *float32, from *uint16, n, ahead int)
TEXT ·widenFloat16(SB), NOSPLIT, $0-32
	MOVD to+0(FP), R0
	MOVD from+8(FP), R1
	MOVD n+16(FP), R2
	MOVD ahead+24(FP), R3
	USUAL
next:
	ADD    R3, R1, R4
	PRFM   (R4), PLDL2KEEP
	VLD1.P 64(R1), [V0.H8, V1.H8, V2.H8, V3.H8]
	FCVTL(0, 4)
	FCVTL2(0, 5)
	FCVTL(1, 6)
	FCVTL2(1, 7)
	FCVTL(2, 16)
	FCVTL2(2, 17)
	FCVTL(3, 18)
	FCVTL2(3, 19)
	VST1.P [V4.S4, V5.S4, V6.S4, V7.S4], 64(R0)
	VST1.P [V16.S4, V17.S4, V18.S4, V19.S4], 64(R0)
	SUBS   $32, R2, R2
	BNE    next
	BEFORE

// func narrowFloat16(to *uint16, from *float32, n int)
TEXT ·narrowFloat16(SB), NOSPLIT, $0-24
	MOVD to+0(FP), R0
	MOVD from+8(FP), R1
	MOVD n+16(FP), R2
	USUAL
next:
	VLD1.P 64(R1), [V0.S4, V1.S4, V2.S4, V3.S4]
	VLD1.P 64(R1), [V4.S4, V5.S4, V6.S4, V7.S4]
	FCVTN(0, 16)
	FCVTN2(1, 16)
	FCVTN(2, 17)
	FCVTN2(3, 17)
	FCVTN(4, 18)
	FCVTN2(5, 18)
	FCVTN(6, 19)
	FCVTN2(7, 19)
	VST1.P [V16.H8, V17.H8, V18.H8, V19.H8], 64(R0)
	SUBS   $32, R2, R2
	BNE    next
	BEFORE

// QUIET replaces the sum of a NaN by the NaN with its highest bit set, where x is one. V28 has that bit. It changes V24 and V25.
#define QUIET(i, x, sum) \
	ORDERED(i, 24); \
	VORR V28.B16, x.B16, V25.B16; \
	VBIF V24.B16, V25.B16, sum.B16

// ROUND sets sum to a number whose upper half is x rounded to nearest even, by adding 0x7fff, and 1 more if bit 16 is set.
#define ROUND(i, x, sum) \
	VUSHR $16, x.S4, sum.S4; \
	VADD  V30.S4, x.S4, V26.S4; \
	VAND  V29.B16, sum.B16, sum.B16; \
	VADD  V26.S4, sum.S4, sum.S4; \
	QUIET(i, x, sum)

// func narrowBFloat16(to *uint16, from *float32, n int)
TEXT ·narrowBFloat16(SB), NOSPLIT, $0-24
	MOVD to+0(FP), R0
	MOVD from+8(FP), R1
	MOVD n+16(FP), R2
	MOVD $0x400000, R3
	VDUP R3, V28.S4
	MOVD $1, R3
	VDUP R3, V29.S4
	MOVD $0x7fff, R3
	VDUP R3, V30.S4
next:
	VLD1.P 64(R1), [V0.S4, V1.S4, V2.S4, V3.S4]
	VLD1.P 64(R1), [V4.S4, V5.S4, V6.S4, V7.S4]
	ROUND(0, V0, V16)
	ROUND(1, V1, V17)
	ROUND(2, V2, V18)
	ROUND(3, V3, V19)
	ROUND(4, V4, V20)
	ROUND(5, V5, V21)
	ROUND(6, V6, V22)
	ROUND(7, V7, V23)
	VUZP2  V17.H8, V16.H8, V16.H8
	VUZP2  V19.H8, V18.H8, V17.H8
	VUZP2  V21.H8, V20.H8, V18.H8
	VUZP2  V23.H8, V22.H8, V19.H8
	VST1.P [V16.H8, V17.H8, V18.H8, V19.H8], 64(R0)
	SUBS   $32, R2, R2
	BNE    next
	RET

// The noise of 32 elements is 16 hashed numbers, x and multiples of the stride after it. The first 16 elements have a number, and
// the others the same rotated by 16. Noise.At has the formula.

DATA lanes<>+0(SB)/8, $0x0000000100000000
DATA lanes<>+8(SB)/8, $0x0000000300000002
GLOBL lanes<>(SB), RODATA|NOPTR, $16

// NOISE adds the next 4 numbers of the vector x, hashed, to the elements a and b. V29 to V31 have the multipliers and 16 strides.
#define NOISE(x, j, a, k, b, sum, other) \
	VUSHR $16, x.S4, V24.S4; \
	VEOR  x.B16, V24.B16, V24.B16; \
	VADD  V31.S4, x.S4, x.S4; \
	MULTIPLY(29, 24, 24); \
	VUSHR $15, V24.S4, V25.S4; \
	VEOR  V25.B16, V24.B16, V24.B16; \
	MULTIPLY(30, 24, 24); \
	VUSHR $15, V24.S4, V25.S4; \
	VEOR  V25.B16, V24.B16, V24.B16; \
	VUSHR $16, V24.S4, sum.S4; \
	VAND  V27.B16, V24.B16, other.B16; \
	VADD  a.S4, sum.S4, sum.S4; \
	VADD  b.S4, other.S4, other.S4; \
	QUIET(j, a, sum); \
	QUIET(k, b, other)

// func stochasticBFloat16(to *uint16, from *float32, n int, x, stride uint32)
TEXT ·stochasticBFloat16(SB), NOSPLIT, $0-32
	MOVD  to+0(FP), R0
	MOVD  from+8(FP), R1
	MOVD  n+16(FP), R2
	MOVWU x+24(FP), R3
	MOVWU stride+28(FP), R4
	VDUP  R4, V31.S4
	MOVD  $lanes<>(SB), R6
	VLD1  (R6), [V8.S4]
	MULTIPLY(31, 8, 8)
	VDUP  R3, V9.S4
	VADD  V9.S4, V8.S4, V8.S4
	VSHL  $2, V31.S4, V12.S4
	VADD  V12.S4, V8.S4, V9.S4
	VADD  V12.S4, V9.S4, V10.S4
	VADD  V12.S4, V10.S4, V11.S4
	VSHL  $4, V31.S4, V31.S4
	MOVD  $0x21f0aaad, R3
	VDUP  R3, V29.S4
	MOVD  $0x735a2d97, R3
	VDUP  R3, V30.S4
	MOVD  $0x400000, R3
	VDUP  R3, V28.S4
	MOVD  $0xffff, R3
	VDUP  R3, V27.S4
next:
	VLD1.P 64(R1), [V0.S4, V1.S4, V2.S4, V3.S4]
	VLD1.P 64(R1), [V4.S4, V5.S4, V6.S4, V7.S4]
	NOISE(V8, 0, V0, 4, V4, V16, V20)
	NOISE(V9, 1, V1, 5, V5, V17, V21)
	NOISE(V10, 2, V2, 6, V6, V18, V22)
	NOISE(V11, 3, V3, 7, V7, V19, V23)
	VUZP2  V17.H8, V16.H8, V16.H8
	VUZP2  V19.H8, V18.H8, V17.H8
	VUZP2  V21.H8, V20.H8, V18.H8
	VUZP2  V23.H8, V22.H8, V19.H8
	VST1.P [V16.H8, V17.H8, V18.H8, V19.H8], 64(R0)
	SUBS   $32, R2, R2
	BNE    next
	RET

// func addx4(to, from *float32, n int)
TEXT ·addx4(SB), NOSPLIT, $0-24
	MOVD to+0(FP), R0
	MOVD from+8(FP), R1
	MOVD n+16(FP), R2
next:
	VLD1   (R0), [V0.S4, V1.S4, V2.S4, V3.S4]
	VLD1.P 64(R1), [V4.S4, V5.S4, V6.S4, V7.S4]
	FADD(4, 0, 0)
	FADD(5, 1, 1)
	FADD(6, 2, 2)
	FADD(7, 3, 3)
	VST1.P [V0.S4, V1.S4, V2.S4, V3.S4], 64(R0)
	SUBS   $16, R2, R2
	BNE    next
	RET

// REST sets a to b - a, or to 0 if the result is not finite. V31 is 0, and V30 has the bits of infinity. It changes V29.
#define REST(i, a, j, b) \
	FSUB(i, j, i); \
	VAND  V30.B16, a.B16, V29.B16; \
	VCMEQ V30.S4, V29.S4, V29.S4; \
	VBIT  V29.B16, V31.B16, a.B16

// func subtractx4(to, from *float32, n int)
TEXT ·subtractx4(SB), NOSPLIT, $0-24
	MOVD to+0(FP), R0
	MOVD from+8(FP), R1
	MOVD n+16(FP), R2
	MOVD $0x7f800000, R3
	VDUP R3, V30.S4
	VEOR V31.B16, V31.B16, V31.B16
next:
	VLD1   (R0), [V0.S4, V1.S4, V2.S4, V3.S4]
	VLD1.P 64(R1), [V4.S4, V5.S4, V6.S4, V7.S4]
	REST(0, V0, 4, V4)
	REST(1, V1, 5, V5)
	REST(2, V2, 6, V6)
	REST(3, V3, 7, V7)
	VST1.P [V0.S4, V1.S4, V2.S4, V3.S4], 64(R0)
	SUBS   $16, R2, R2
	BNE    next
	RET
