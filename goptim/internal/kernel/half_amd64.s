//go:build goexperiment.simd

#include "textflag.h"

// All functions convert n elements, a positive multiple of 32. Those that widen prefetch what follows by a distance in bytes. They
// clear the upper halves of the registers, because Go's wrapper of an assembly function has an SSE instruction.

// func widenBFloat16x16(to *float32, from *uint16, n, ahead int)
TEXT ·widenBFloat16x16(SB), NOSPLIT, $0-32
	MOVQ to+0(FP), DI
	MOVQ from+8(FP), SI
	MOVQ n+16(FP), CX
	MOVQ ahead+24(FP), DX
next:
	PREFETCHT1 (SI)(DX*1)
	VPMOVZXWD  (SI), Z0
	VPMOVZXWD  32(SI), Z1
	VPSLLD     $16, Z0, Z0
	VPSLLD     $16, Z1, Z1
	VMOVDQU32  Z0, (DI)
	VMOVDQU32  Z1, 64(DI)
	ADDQ       $64, SI
	ADDQ       $128, DI
	SUBQ       $32, CX
	JNZ        next
	VZEROUPPER
	RET

// func widenBFloat16x8(to *float32, from *uint16, n, ahead int)
TEXT ·widenBFloat16x8(SB), NOSPLIT, $0-32
	MOVQ to+0(FP), DI
	MOVQ from+8(FP), SI
	MOVQ n+16(FP), CX
	MOVQ ahead+24(FP), DX
next:
	PREFETCHT1 (SI)(DX*1)
	VPMOVZXWD  (SI), Y0
	VPMOVZXWD  16(SI), Y1
	VPMOVZXWD  32(SI), Y2
	VPMOVZXWD  48(SI), Y3
	VPSLLD     $16, Y0, Y0
	VPSLLD     $16, Y1, Y1
	VPSLLD     $16, Y2, Y2
	VPSLLD     $16, Y3, Y3
	VMOVDQU    Y0, (DI)
	VMOVDQU    Y1, 32(DI)
	VMOVDQU    Y2, 64(DI)
	VMOVDQU    Y3, 96(DI)
	ADDQ       $64, SI
	ADDQ       $128, DI
	SUBQ       $32, CX
	JNZ        next
	VZEROUPPER
	RET

// A number is rounded to nearest even by adding 0x7fff, and 1 more if bit 16 is set, before the lower half is dropped. With 512
// bits, the negative of this sum is subtracted, which is 0xffff8000 with the inverse of bit 16 as its lowest bit. Integer
// arithmetic does not depend on the thread's rounding mode and treatment of subnormal numbers. A NaN of two vectors
// takes a branch, since they are rare.

// order undoes the order of VPACKUSDW.
DATA order<>+0(SB)/8, $0
DATA order<>+8(SB)/8, $2
DATA order<>+16(SB)/8, $4
DATA order<>+24(SB)/8, $6
DATA order<>+32(SB)/8, $1
DATA order<>+40(SB)/8, $3
DATA order<>+48(SB)/8, $5
DATA order<>+56(SB)/8, $7
GLOBL order<>(SB), RODATA|NOPTR, $64

// func narrowBFloat16x16(to *uint16, from *float32, n int)
TEXT ·narrowBFloat16x16(SB), NOSPLIT, $0-24
	MOVQ         to+0(FP), DI
	MOVQ         from+8(FP), SI
	MOVQ         n+16(FP), CX
	VMOVDQU64    order<>(SB), Z16
	MOVL         $1, AX
	VPBROADCASTD AX, Z17
	MOVL         $0xffff8000, AX
	VPBROADCASTD AX, Z18
	MOVL         $0x00400000, AX
	VPBROADCASTD AX, Z19
next:
	VMOVDQU32  (SI), Z0
	VMOVDQU32  64(SI), Z1
	VCMPPS     $3, Z0, Z1, K1
	VPSRLD     $16, Z0, Z2
	VPSRLD     $16, Z1, Z3
	VPTERNLOGD $0xae, Z18, Z17, Z2
	VPTERNLOGD $0xae, Z18, Z17, Z3
	VPSUBD     Z2, Z0, Z2
	VPSUBD     Z3, Z1, Z3
	KORTESTW   K1, K1
	JNE        nan
pack:
	VPSRLD     $16, Z2, Z2
	VPSRLD     $16, Z3, Z3
	VPACKUSDW  Z3, Z2, Z2
	VPERMQ     Z2, Z16, Z2
	VMOVDQU64  Z2, (DI)
	ADDQ       $128, SI
	ADDQ       $64, DI
	SUBQ       $32, CX
	JNZ        next
	VZEROUPPER
	RET
nan:
	VCMPPS $3, Z0, Z0, K1
	VPORD  Z19, Z0, K1, Z2
	VCMPPS $3, Z1, Z1, K1
	VPORD  Z19, Z1, K1, Z3
	JMP    pack

// func narrowBFloat16x8(to *uint16, from *float32, n int)
TEXT ·narrowBFloat16x8(SB), NOSPLIT, $0-24
	MOVQ         to+0(FP), DI
	MOVQ         from+8(FP), SI
	MOVQ         n+16(FP), CX
	MOVL         $1, AX
	VMOVD        AX, X13
	VPBROADCASTD X13, Y13
	MOVL         $0x7fff, AX
	VMOVD        AX, X14
	VPBROADCASTD X14, Y14
	MOVL         $0x00400000, AX
	VMOVD        AX, X15
	VPBROADCASTD X15, Y15
next:
	VMOVDQU (SI), Y0
	VMOVDQU 32(SI), Y1
	VCMPPS  $3, Y0, Y1, Y6
	VPSRLD  $16, Y0, Y2
	VPSRLD  $16, Y1, Y3
	VPAND   Y13, Y2, Y2
	VPAND   Y13, Y3, Y3
	VPADDD  Y14, Y0, Y4
	VPADDD  Y14, Y1, Y5
	VPADDD  Y4, Y2, Y2
	VPADDD  Y5, Y3, Y3
	VPTEST  Y6, Y6
	JNE     nan
pack:
	VPSRLD     $16, Y2, Y2
	VPSRLD     $16, Y3, Y3
	VPACKUSDW  Y3, Y2, Y2
	VPERMQ     $0xd8, Y2, Y2
	VMOVDQU    Y2, (DI)
	ADDQ       $64, SI
	ADDQ       $32, DI
	SUBQ       $16, CX
	JNZ        next
	VZEROUPPER
	RET
nan:
	VCMPPS    $3, Y0, Y0, Y6
	VPOR      Y15, Y0, Y4
	VBLENDVPS Y6, Y4, Y2, Y2
	VCMPPS    $3, Y1, Y1, Y6
	VPOR      Y15, Y1, Y4
	VBLENDVPS Y6, Y4, Y3, Y3
	JMP       pack

// func widenFloat16x16(to *float32, from *uint16, n, ahead int)
TEXT ·widenFloat16x16(SB), NOSPLIT, $0-32
	MOVQ to+0(FP), DI
	MOVQ from+8(FP), SI
	MOVQ n+16(FP), CX
	MOVQ ahead+24(FP), DX
next:
	PREFETCHT1 (SI)(DX*1)
	VCVTPH2PS  (SI), Z0
	VCVTPH2PS  32(SI), Z1
	VMOVDQU32  Z0, (DI)
	VMOVDQU32  Z1, 64(DI)
	ADDQ       $64, SI
	ADDQ       $128, DI
	SUBQ       $32, CX
	JNZ        next
	VZEROUPPER
	RET

// func widenFloat16x8(to *float32, from *uint16, n, ahead int)
TEXT ·widenFloat16x8(SB), NOSPLIT, $0-32
	MOVQ to+0(FP), DI
	MOVQ from+8(FP), SI
	MOVQ n+16(FP), CX
	MOVQ ahead+24(FP), DX
next:
	PREFETCHT1 (SI)(DX*1)
	VCVTPH2PS  (SI), Y0
	VCVTPH2PS  16(SI), Y1
	VCVTPH2PS  32(SI), Y2
	VCVTPH2PS  48(SI), Y3
	VMOVDQU    Y0, (DI)
	VMOVDQU    Y1, 32(DI)
	VMOVDQU    Y2, 64(DI)
	VMOVDQU    Y3, 96(DI)
	ADDQ       $64, SI
	ADDQ       $128, DI
	SUBQ       $32, CX
	JNZ        next
	VZEROUPPER
	RET

// func narrowFloat16x16(to *uint16, from *float32, n int)
TEXT ·narrowFloat16x16(SB), NOSPLIT, $0-24
	MOVQ to+0(FP), DI
	MOVQ from+8(FP), SI
	MOVQ n+16(FP), CX
next:
	VMOVDQU32  (SI), Z0
	VMOVDQU32  64(SI), Z1
	VCVTPS2PH  $0, Z0, (DI)
	VCVTPS2PH  $0, Z1, 32(DI)
	ADDQ       $128, SI
	ADDQ       $64, DI
	SUBQ       $32, CX
	JNZ        next
	VZEROUPPER
	RET

// func narrowFloat16x8(to *uint16, from *float32, n int)
TEXT ·narrowFloat16x8(SB), NOSPLIT, $0-24
	MOVQ to+0(FP), DI
	MOVQ from+8(FP), SI
	MOVQ n+16(FP), CX
next:
	VMOVDQU    (SI), Y0
	VMOVDQU    32(SI), Y1
	VMOVDQU    64(SI), Y2
	VMOVDQU    96(SI), Y3
	VCVTPS2PH  $0, Y0, (DI)
	VCVTPS2PH  $0, Y1, 16(DI)
	VCVTPS2PH  $0, Y2, 32(DI)
	VCVTPS2PH  $0, Y3, 48(DI)
	ADDQ       $128, SI
	ADDQ       $64, DI
	SUBQ       $32, CX
	JNZ        next
	VZEROUPPER
	RET

// The noise of 32 elements is 16 hashed numbers, x and multiples of the stride after it. The first 16 elements have a number, and
// the others the same rotated by 16. Noise.At has the formula.

DATA lanes<>+0(SB)/8, $0x0000000100000000
DATA lanes<>+8(SB)/8, $0x0000000300000002
DATA lanes<>+16(SB)/8, $0x0000000500000004
DATA lanes<>+24(SB)/8, $0x0000000700000006
DATA lanes<>+32(SB)/8, $0x0000000900000008
DATA lanes<>+40(SB)/8, $0x0000000b0000000a
DATA lanes<>+48(SB)/8, $0x0000000d0000000c
DATA lanes<>+56(SB)/8, $0x0000000f0000000e
GLOBL lanes<>(SB), RODATA|NOPTR, $64

// BROADCAST sets all elements of a vector to a constant.
#define BROADCASTZ(value, to) \
	MOVL         value, AX; \
	VPBROADCASTD AX, to

#define BROADCASTY(value, x, to) \
	MOVL         value, AX; \
	VMOVD        AX, x; \
	VPBROADCASTD x, to

// STARTZ loads the arguments, Z31 with x and multiples of the stride, Z30 with 16 strides, and Z29 and Z28 with the multipliers.
#define STARTZ \
	MOVQ         to+0(FP), DI; \
	MOVQ         from+8(FP), SI; \
	MOVQ         n+16(FP), CX; \
	MOVL         stride+28(FP), AX; \
	VPBROADCASTD AX, Z30; \
	VPMULLD      lanes<>(SB), Z30, Z31; \
	VPSLLD       $4, Z30, Z30; \
	MOVL         x+24(FP), AX; \
	VPBROADCASTD AX, Z0; \
	VPADDD       Z0, Z31, Z31; \
	BROADCASTZ($0x21f0aaad, Z29); \
	BROADCASTZ($0x735a2d97, Z28); \
	VMOVDQU64    order<>(SB), Z16

// HASHZ sets Z4 to the next 16 numbers. Z5 is for intermediate results.
#define HASHZ \
	VPSRLD  $16, Z31, Z4; \
	VPXORD  Z31, Z4, Z4; \
	VPADDD  Z30, Z31, Z31; \
	VPMULLD Z29, Z4, Z4; \
	VPSRLD  $15, Z4, Z5; \
	VPXORD  Z5, Z4, Z4; \
	VPMULLD Z28, Z4, Z4; \
	VPSRLD  $15, Z4, Z5; \
	VPXORD  Z5, Z4, Z4

// func stochasticBFloat16x16(to *uint16, from *float32, n int, x, stride uint32)
TEXT ·stochasticBFloat16x16(SB), NOSPLIT, $0-32
	STARTZ
	BROADCASTZ($0xffff, Z17)
	BROADCASTZ($0x00400000, Z19)
next:
	HASHZ
	VMOVDQU32 (SI), Z0
	VMOVDQU32 64(SI), Z1
	VCMPPS    $3, Z0, Z1, K1
	VPSRLD    $16, Z4, Z2
	VPANDD    Z17, Z4, Z3
	VPADDD    Z0, Z2, Z2
	VPADDD    Z1, Z3, Z3
	KORTESTW  K1, K1
	JNE       nan
pack:
	VPSRLD    $16, Z2, Z2
	VPSRLD    $16, Z3, Z3
	VPACKUSDW Z3, Z2, Z2
	VPERMQ    Z2, Z16, Z2
	VMOVDQU64 Z2, (DI)
	ADDQ      $128, SI
	ADDQ      $64, DI
	SUBQ      $32, CX
	JNZ       next
	VZEROUPPER
	RET
nan:
	VCMPPS $3, Z0, Z0, K1
	VPORD  Z19, Z0, K1, Z2
	VCMPPS $3, Z1, Z1, K1
	VPORD  Z19, Z1, K1, Z3
	JMP    pack

// ROUNDZ rounds x to float16 with random numbers, and returns it in the lower half of each element. It changes K1 to K3 and Z6 to
// Z11. Z13 to Z27 have constants (stochasticFloat16x16). It computes the number below, in Z7, and 2^32 times the rest, in Z8; a
// subnormal number needs other shifts, which depend on the exponent. Then infinite results and NaN replace some.
#define ROUNDZ(x, random) \
	VPANDD     Z17, x, Z6; \
	VPSRLD     $16, x, x; \
	VPANDD     Z18, x, x; \
	VPSUBD     Z19, Z6, Z7; \
	VPSRLD     $13, Z7, Z7; \
	VPSLLD     $19, Z6, Z8; \
	VPCMPUD    $1, Z20, Z6, K1; \
	VPSRLD     $23, Z6, Z9; \
	VPSUBD     Z9, Z21, Z9; \
	VPANDD     Z22, Z6, Z10; \
	VPORD      Z23, Z10, Z10; \
	VPSRLVD    Z9, Z10, K1, Z7; \
	VPSUBD     Z9, Z24, Z11; \
	VPSLLVD    Z11, Z10, Z11; \
	VPSUBD     Z24, Z9, Z9; \
	VPSRLVD    Z9, Z10, Z10; \
	VPORD      Z11, Z10, K1, Z8; \
	VPTERNLOGD $0x55, random, random, Z9; \
	VPCMPUD    $6, Z9, Z8, K1; \
	VPADDD     Z25, Z7, K1, Z7; \
	VPCMPUD    $5, Z26, Z6, K2; \
	VMOVDQA32  Z27, K2, Z7; \
	VPCMPUD    $6, Z15, Z6, K3; \
	VPSRLD     $13, Z6, Z6; \
	VPANDD     Z14, Z6, Z6; \
	VPORD      Z13, Z6, K3, Z7; \
	VPORD      Z7, x, x

// func stochasticFloat16x16(to *uint16, from *float32, n int, x, stride uint32)
TEXT ·stochasticFloat16x16(SB), NOSPLIT, $0-32
	STARTZ
	BROADCASTZ($0x7fffffff, Z17)
	BROADCASTZ($0x8000, Z18)
	BROADCASTZ($0x38000000, Z19)
	BROADCASTZ($0x38800000, Z20)
	BROADCASTZ($126, Z21)
	BROADCASTZ($0x7fffff, Z22)
	BROADCASTZ($0x800000, Z23)
	BROADCASTZ($32, Z24)
	BROADCASTZ($1, Z25)
	BROADCASTZ($0x47800000, Z26)
	BROADCASTZ($0x7c00, Z27)
	BROADCASTZ($0x7f800000, Z15)
	BROADCASTZ($0x3ff, Z14)
	BROADCASTZ($0x7e00, Z13)
	BROADCASTZ($0x0f000000, Z12)
next:
	HASHZ
	VMOVDQU32 (SI), Z0
	VMOVDQU32 64(SI), Z1
	VPRORD    $16, Z4, Z5
	VPANDD    Z17, Z0, Z2
	VPANDD    Z17, Z1, Z3
	VPSUBD    Z20, Z2, Z6
	VPSUBD    Z20, Z3, Z7
	VPCMPUD   $5, Z12, Z6, K1
	VPCMPUD   $5, Z12, Z7, K2
	KORTESTW  K1, K2
	JNE       some
	VPSRLD    $19, Z4, Z4
	VPSRLD    $19, Z5, Z5
	VPSUBD    Z19, Z2, Z2
	VPSUBD    Z19, Z3, Z3
	VPADDD    Z4, Z2, Z2
	VPADDD    Z5, Z3, Z3
	VPSRLD    $16, Z0, Z0
	VPSRLD    $16, Z1, Z1
	VPSRLD    $13, Z2, Z2
	VPSRLD    $13, Z3, Z3
	VPANDD    Z18, Z0, Z0
	VPANDD    Z18, Z1, Z1
	VPORD     Z2, Z0, Z0
	VPORD     Z3, Z1, Z1
pack:
	VPACKUSDW Z1, Z0, Z0
	VPERMQ    Z0, Z16, Z0
	VMOVDQU64 Z0, (DI)
	ADDQ      $128, SI
	ADDQ      $64, DI
	SUBQ      $32, CX
	JNZ       next
	VZEROUPPER
	RET
some:
	ROUNDZ(Z0, Z4)
	ROUNDZ(Z1, Z5)
	JMP pack

// STARTY loads the arguments, Y15 with x and multiples of the stride, Y14 with 8 strides, and Y13 and Y12 with the multipliers.
#define STARTY \
	MOVQ         to+0(FP), DI; \
	MOVQ         from+8(FP), SI; \
	MOVQ         n+16(FP), CX; \
	BROADCASTY(stride+28(FP), X14, Y14); \
	VPMULLD      lanes<>(SB), Y14, Y15; \
	VPSLLD       $3, Y14, Y14; \
	BROADCASTY(x+24(FP), X0, Y0); \
	VPADDD       Y0, Y15, Y15; \
	BROADCASTY($0x21f0aaad, X13, Y13); \
	BROADCASTY($0x735a2d97, X12, Y12)

// HASHY sets a vector to the next 8 numbers.
#define HASHY(to, scratch) \
	VPSRLD  $16, Y15, to; \
	VPXOR   Y15, to, to; \
	VPADDD  Y14, Y15, Y15; \
	VPMULLD Y13, to, to; \
	VPSRLD  $15, to, scratch; \
	VPXOR   scratch, to, to; \
	VPMULLD Y12, to, to; \
	VPSRLD  $15, to, scratch; \
	VPXOR   scratch, to, to

// QUIET sets the sum of a NaN to the NaN with its highest bit set.
#define QUIET(x, sum) \
	VCMPPS    $3, x, x, Y9; \
	VPOR      Y10, x, x; \
	VBLENDVPS Y9, x, sum, sum

// func stochasticBFloat16x8(to *uint16, from *float32, n int, x, stride uint32)
TEXT ·stochasticBFloat16x8(SB), NOSPLIT, $0-32
	STARTY
	BROADCASTY($0xffff, X11, Y11)
	BROADCASTY($0x00400000, X10, Y10)
next:
	HASHY(Y4, Y8)
	HASHY(Y5, Y8)
	VPAND     Y11, Y4, Y6
	VPAND     Y11, Y5, Y7
	VPSRLD    $16, Y4, Y4
	VPSRLD    $16, Y5, Y5
	VMOVDQU   (SI), Y0
	VMOVDQU   32(SI), Y1
	VMOVDQU   64(SI), Y2
	VMOVDQU   96(SI), Y3
	VCMPPS    $3, Y0, Y1, Y8
	VCMPPS    $3, Y2, Y3, Y9
	VPADDD    Y0, Y4, Y4
	VPADDD    Y1, Y5, Y5
	VPADDD    Y2, Y6, Y6
	VPADDD    Y3, Y7, Y7
	VPOR      Y8, Y9, Y8
	VPTEST    Y8, Y8
	JNE       nan
pack:
	VPSRLD    $16, Y4, Y4
	VPSRLD    $16, Y5, Y5
	VPSRLD    $16, Y6, Y6
	VPSRLD    $16, Y7, Y7
	VPACKUSDW Y5, Y4, Y4
	VPACKUSDW Y7, Y6, Y6
	VPERMQ    $0xd8, Y4, Y4
	VPERMQ    $0xd8, Y6, Y6
	VMOVDQU   Y4, (DI)
	VMOVDQU   Y6, 32(DI)
	ADDQ      $128, SI
	ADDQ      $64, DI
	SUBQ      $32, CX
	JNZ       next
	VZEROUPPER
	RET
nan:
	QUIET(Y0, Y4)
	QUIET(Y1, Y5)
	QUIET(Y2, Y6)
	QUIET(Y3, Y7)
	JMP pack

// The constants of ROUNDY.
DATA halves<>+0(SB)/4, $0x7fffffff
DATA halves<>+4(SB)/4, $0x8000
DATA halves<>+8(SB)/4, $0x38000000
DATA halves<>+12(SB)/4, $0x38800000
DATA halves<>+16(SB)/4, $126
DATA halves<>+20(SB)/4, $0x7fffff
DATA halves<>+24(SB)/4, $0x800000
DATA halves<>+28(SB)/4, $32
DATA halves<>+32(SB)/4, $0x477fffff
DATA halves<>+36(SB)/4, $0x7c00
DATA halves<>+40(SB)/4, $0x7f800000
DATA halves<>+44(SB)/4, $0x3ff
DATA halves<>+48(SB)/4, $0x7e00
DATA halves<>+52(SB)/4, $0x80000000
GLOBL halves<>(SB), RODATA|NOPTR, $56

#define CONSTANT(i, to) VPBROADCASTD halves<>+(4*i)(SB), to

// ROUNDY is ROUNDZ with 256 bits. It changes Y6 to Y11. Comparisons are signed, so the highest bits of both operands are inverted
// where they are not: that of the inverse of the random number by 0x7fffffff.
#define ROUNDY(x, random) \
	CONSTANT(0, Y11); \
	VPXOR     Y11, random, random; \
	VPAND     Y11, x, Y6; \
	CONSTANT(1, Y11); \
	VPSRLD    $16, x, x; \
	VPAND     Y11, x, x; \
	CONSTANT(2, Y11); \
	VPSUBD    Y11, Y6, Y7; \
	VPSRLD    $13, Y7, Y7; \
	CONSTANT(4, Y11); \
	VPSRLD    $23, Y6, Y9; \
	VPSUBD    Y9, Y11, Y9; \
	CONSTANT(5, Y11); \
	VPAND     Y11, Y6, Y10; \
	CONSTANT(6, Y11); \
	VPOR      Y11, Y10, Y10; \
	VPSRLVD   Y9, Y10, Y8; \
	CONSTANT(3, Y11); \
	VPCMPGTD  Y6, Y11, Y11; \
	VBLENDVPS Y11, Y8, Y7, Y7; \
	CONSTANT(7, Y11); \
	VPSUBD    Y9, Y11, Y8; \
	VPSLLVD   Y8, Y10, Y8; \
	VPSUBD    Y11, Y9, Y9; \
	VPSRLVD   Y9, Y10, Y10; \
	VPOR      Y8, Y10, Y10; \
	VPSLLD    $19, Y6, Y8; \
	CONSTANT(3, Y11); \
	VPCMPGTD  Y6, Y11, Y11; \
	VBLENDVPS Y11, Y10, Y8, Y8; \
	CONSTANT(13, Y11); \
	VPXOR     Y11, Y8, Y8; \
	VPCMPGTD  random, Y8, Y8; \
	VPSUBD    Y8, Y7, Y7; \
	CONSTANT(8, Y11); \
	VPCMPGTD  Y11, Y6, Y8; \
	CONSTANT(9, Y11); \
	VBLENDVPS Y8, Y11, Y7, Y7; \
	CONSTANT(10, Y11); \
	VPCMPGTD  Y11, Y6, Y8; \
	CONSTANT(11, Y11); \
	VPSRLD    $13, Y6, Y6; \
	VPAND     Y11, Y6, Y6; \
	CONSTANT(12, Y11); \
	VPOR      Y11, Y6, Y6; \
	VBLENDVPS Y8, Y6, Y7, Y7; \
	VPOR      Y7, x, x

// ROTATE rotates by 16.
#define ROTATE(from, to, scratch) \
	VPSRLD $16, from, to; \
	VPSLLD $16, from, scratch; \
	VPOR   scratch, to, to

// NORMAL sets Y8 to the elements of x whose magnitude is not that of a normal float16. It changes Y6, Y7 and Y11.
#define NORMAL(x) \
	CONSTANT(0, Y11); \
	VPAND     Y11, x, Y6; \
	CONSTANT(3, Y11); \
	VPCMPGTD  Y6, Y11, Y7; \
	CONSTANT(8, Y11); \
	VPCMPGTD  Y11, Y6, Y8; \
	VPOR      Y7, Y8, Y8

// QUICK is ROUNDY for numbers whose magnitude, in Y6, is that of a normal float16. It changes Y7 and Y11.
#define QUICK(x, random) \
	CONSTANT(1, Y11); \
	VPSRLD    $16, x, x; \
	VPAND     Y11, x, x; \
	CONSTANT(2, Y11); \
	VPSRLD    $19, random, Y7; \
	VPSUBD    Y11, Y6, Y6; \
	VPADDD    Y7, Y6, Y6; \
	VPSRLD    $13, Y6, Y6; \
	VPOR      Y6, x, x

// func stochasticFloat16x8(to *uint16, from *float32, n int, x, stride uint32)
TEXT ·stochasticFloat16x8(SB), NOSPLIT, $0-32
	STARTY
next:
	HASHY(Y2, Y6)
	HASHY(Y3, Y6)
	ROTATE(Y2, Y4, Y6)
	ROTATE(Y3, Y5, Y6)
	VMOVDQU   (SI), Y0
	VMOVDQU   32(SI), Y1
	NORMAL(Y0)
	VPTEST    Y8, Y8
	JNE       some0
	QUICK(Y0, Y2)
next1:
	NORMAL(Y1)
	VPTEST    Y8, Y8
	JNE       some1
	QUICK(Y1, Y3)
pack01:
	VPACKUSDW Y1, Y0, Y0
	VPERMQ    $0xd8, Y0, Y0
	VMOVDQU   Y0, (DI)
	VMOVDQU   64(SI), Y0
	VMOVDQU   96(SI), Y1
	NORMAL(Y0)
	VPTEST    Y8, Y8
	JNE       some2
	QUICK(Y0, Y4)
next3:
	NORMAL(Y1)
	VPTEST    Y8, Y8
	JNE       some3
	QUICK(Y1, Y5)
pack23:
	VPACKUSDW Y1, Y0, Y0
	VPERMQ    $0xd8, Y0, Y0
	VMOVDQU   Y0, 32(DI)
	ADDQ      $128, SI
	ADDQ      $64, DI
	SUBQ      $32, CX
	JNZ       next
	VZEROUPPER
	RET
some0:
	ROUNDY(Y0, Y2)
	JMP next1
some1:
	ROUNDY(Y1, Y3)
	JMP pack01
some2:
	ROUNDY(Y0, Y4)
	JMP next3
some3:
	ROUNDY(Y1, Y5)
	JMP pack23

// func addx8(to, from *float32, n int)
TEXT ·addx8(SB), NOSPLIT, $0-24
	MOVQ to+0(FP), DI
	MOVQ from+8(FP), SI
	MOVQ n+16(FP), CX
next:
	VMOVUPS (DI), Y0
	VMOVUPS 32(DI), Y1
	VADDPS  (SI), Y0, Y0
	VADDPS  32(SI), Y1, Y1
	VMOVUPS Y0, (DI)
	VMOVUPS Y1, 32(DI)
	ADDQ    $64, SI
	ADDQ    $64, DI
	SUBQ    $16, CX
	JNZ     next
	VZEROUPPER
	RET

// func subtractx8(to, from *float32, n int)
TEXT ·subtractx8(SB), NOSPLIT, $0-24
	MOVQ to+0(FP), DI
	MOVQ from+8(FP), SI
	MOVQ n+16(FP), CX
	BROADCASTY($0x7f800000, X4, Y4)
next:
	VMOVUPS  (SI), Y0
	VMOVUPS  32(SI), Y1
	VSUBPS   (DI), Y0, Y0
	VSUBPS   32(DI), Y1, Y1
	VPAND    Y4, Y0, Y2
	VPAND    Y4, Y1, Y3
	VPCMPEQD Y4, Y2, Y2
	VPCMPEQD Y4, Y3, Y3
	VPANDN   Y0, Y2, Y0
	VPANDN   Y1, Y3, Y1
	VMOVUPS  Y0, (DI)
	VMOVUPS  Y1, 32(DI)
	ADDQ     $64, SI
	ADDQ     $64, DI
	SUBQ     $16, CX
	JNZ      next
	VZEROUPPER
	RET

// func hasF16C() bool
TEXT ·hasF16C(SB), NOSPLIT, $0-1
	MOVL  $1, AX
	XORL  CX, CX
	CPUID
	SHRL  $29, CX
	ANDL  $1, CX
	MOVB  CX, ret+0(FP)
	RET
