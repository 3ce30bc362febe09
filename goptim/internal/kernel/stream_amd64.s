//go:build goexperiment.simd

#include "textflag.h"

// Loops that are bound by memory, over n elements of 16 bits, a positive multiple of 32: they widen, compute and round in registers.
// Rounding is that of half_amd64.s. Z0, Z1 or Y0, Y1 have the numbers, and the rounded ones are in 2 and 3.

#define constants16 \
	VMOVDQU64    order64<>(SB), Z16; \
	MOVL         $1, AX; \
	VPBROADCASTD AX, Z17; \
	MOVL         $0xffff8000, AX; \
	VPBROADCASTD AX, Z18; \
	MOVL         $0x00400000, AX; \
	VPBROADCASTD AX, Z19

#define round16 \
	VCMPPS     $3, Z0, Z1, K1; \
	VPSRLD     $16, Z0, Z2; \
	VPSRLD     $16, Z1, Z3; \
	VPTERNLOGD $0xae, Z18, Z17, Z2; \
	VPTERNLOGD $0xae, Z18, Z17, Z3; \
	VPSUBD     Z2, Z0, Z2; \
	VPSUBD     Z3, Z1, Z3; \
	KORTESTW   K1, K1

#define pack16 \
	VPSRLD    $16, Z2, Z2; \
	VPSRLD    $16, Z3, Z3; \
	VPACKUSDW Z3, Z2, Z2; \
	VPERMQ    Z2, Z16, Z2; \
	VMOVDQU64 Z2, (DI)

#define nan16 \
	VCMPPS $3, Z0, Z0, K1; \
	VPORD  Z19, Z0, K1, Z2; \
	VCMPPS $3, Z1, Z1, K1; \
	VPORD  Z19, Z1, K1, Z3

#define constants8 \
	MOVL         $1, AX; \
	VMOVD        AX, X13; \
	VPBROADCASTD X13, Y13; \
	MOVL         $0x7fff, AX; \
	VMOVD        AX, X14; \
	VPBROADCASTD X14, Y14; \
	MOVL         $0x00400000, AX; \
	VMOVD        AX, X15; \
	VPBROADCASTD X15, Y15

#define round8 \
	VCMPPS $3, Y0, Y1, Y6; \
	VPSRLD $16, Y0, Y2; \
	VPSRLD $16, Y1, Y3; \
	VPAND  Y13, Y2, Y2; \
	VPAND  Y13, Y3, Y3; \
	VPADDD Y14, Y0, Y4; \
	VPADDD Y14, Y1, Y5; \
	VPADDD Y4, Y2, Y2; \
	VPADDD Y5, Y3, Y3; \
	VPTEST Y6, Y6

#define pack8 \
	VPSRLD    $16, Y2, Y2; \
	VPSRLD    $16, Y3, Y3; \
	VPACKUSDW Y3, Y2, Y2; \
	VPERMQ    $0xd8, Y2, Y2; \
	VMOVDQU   Y2, (DI)

#define nan8 \
	VCMPPS    $3, Y0, Y0, Y6; \
	VPOR      Y15, Y0, Y4; \
	VBLENDVPS Y6, Y4, Y2, Y2; \
	VCMPPS    $3, Y1, Y1, Y6; \
	VPOR      Y15, Y1, Y4; \
	VBLENDVPS Y6, Y4, Y3, Y3

DATA order64<>+0(SB)/8, $0
DATA order64<>+8(SB)/8, $2
DATA order64<>+16(SB)/8, $4
DATA order64<>+24(SB)/8, $6
DATA order64<>+32(SB)/8, $1
DATA order64<>+40(SB)/8, $3
DATA order64<>+48(SB)/8, $5
DATA order64<>+56(SB)/8, $7
GLOBL order64<>(SB), RODATA|NOPTR, $64

// The products of numbers with x, and the largest of their magnitudes before that, as integers.
#define product16 \
	VPANDD  Z21, Z0, Z2; \
	VPANDD  Z21, Z1, Z3; \
	VPMAXUD Z2, Z22, Z22; \
	VPMAXUD Z3, Z23, Z23; \
	VMULPS  Z20, Z0, Z0; \
	VMULPS  Z20, Z1, Z1

#define beginProduct16 \
	MOVQ         to+0(FP), DI; \
	MOVQ         from+8(FP), SI; \
	MOVQ         n+16(FP), CX; \
	MOVL         x+24(FP), AX; \
	VPBROADCASTD AX, Z20; \
	MOVL         $0x7fffffff, AX; \
	VPBROADCASTD AX, Z21; \
	VPXORD       Z22, Z22, Z22; \
	VPXORD       Z23, Z23, Z23

#define endProduct16 \
	MOVQ      most+32(FP), DX; \
	VPMAXUD   Z23, Z22, Z22; \
	VMOVDQU32 Z22, (DX); \
	VZEROUPPER

#define product8 \
	VPAND   Y11, Y0, Y2; \
	VPAND   Y11, Y1, Y3; \
	VPMAXUD Y2, Y12, Y12; \
	VPMAXUD Y3, Y12, Y12; \
	VMULPS  Y10, Y0, Y0; \
	VMULPS  Y10, Y1, Y1

#define beginProduct8 \
	MOVQ         to+0(FP), DI; \
	MOVQ         from+8(FP), SI; \
	MOVQ         n+16(FP), CX; \
	VBROADCASTSS x+24(FP), Y10; \
	MOVL         $0x7fffffff, AX; \
	VMOVD        AX, X11; \
	VPBROADCASTD X11, Y11; \
	VPXOR        Y12, Y12, Y12

#define endProduct8 \
	MOVQ    most+32(FP), DX; \
	VMOVDQU Y12, (DX); \
	VZEROUPPER

// The averages x become x.lerp_(y, weight): fma(w, y - x, b), where b is y if all bits of ofG are set, or x if none is.
#define beginLerp16 \
	MOVQ         to+0(FP), DI; \
	MOVQ         from+8(FP), SI; \
	MOVQ         n+16(FP), CX; \
	MOVL         w+24(FP), AX; \
	VPBROADCASTD AX, Z20; \
	MOVL         ofG+28(FP), AX; \
	KMOVW        AX, K2

#define lerp16 \
	VBLENDMPS   Z4, Z0, K2, Z6; \
	VBLENDMPS   Z5, Z1, K2, Z7; \
	VSUBPS      Z0, Z4, Z0; \
	VSUBPS      Z1, Z5, Z1; \
	VFMADD213PS Z6, Z20, Z0; \
	VFMADD213PS Z7, Z20, Z1

#define beginLerp8 \
	MOVQ         to+0(FP), DI; \
	MOVQ         from+8(FP), SI; \
	MOVQ         n+16(FP), CX; \
	VBROADCASTSS w+24(FP), Y10; \
	VPBROADCASTD ofG+28(FP), Y11

#define lerp8 \
	VBLENDVPS   Y11, Y4, Y0, Y6; \
	VBLENDVPS   Y11, Y5, Y1, Y7; \
	VSUBPS      Y0, Y4, Y0; \
	VSUBPS      Y1, Y5, Y1; \
	VFMADD213PS Y6, Y10, Y0; \
	VFMADD213PS Y7, Y10, Y1

// func productBFloat16x16(to, from *uint16, n int, x float32, most *[16]uint32)
TEXT ·productBFloat16x16(SB), NOSPLIT, $0-40
	beginProduct16
	constants16
next:
	VPMOVZXWD  (SI), Z0
	VPMOVZXWD  32(SI), Z1
	VPSLLD     $16, Z0, Z0
	VPSLLD     $16, Z1, Z1
	product16
	round16
	JNE        nan
pack:
	pack16
	ADDQ       $64, SI
	ADDQ       $64, DI
	SUBQ       $32, CX
	JNZ        next
	endProduct16
	RET
nan:
	nan16
	JMP        pack

// func productBFloat16x8(to, from *uint16, n int, x float32, most *[16]uint32)
TEXT ·productBFloat16x8(SB), NOSPLIT, $0-40
	beginProduct8
	constants8
next:
	VPMOVZXWD  (SI), Y0
	VPMOVZXWD  16(SI), Y1
	VPSLLD     $16, Y0, Y0
	VPSLLD     $16, Y1, Y1
	product8
	round8
	JNE        nan
pack:
	pack8
	ADDQ       $32, SI
	ADDQ       $32, DI
	SUBQ       $16, CX
	JNZ        next
	endProduct8
	RET
nan:
	nan8
	JMP        pack

// func productFloat16x16(to, from *uint16, n int, x float32, most *[16]uint32)
TEXT ·productFloat16x16(SB), NOSPLIT, $0-40
	beginProduct16
next:
	VCVTPH2PS  (SI), Z0
	VCVTPH2PS  32(SI), Z1
	product16
	VCVTPS2PH  $0, Z0, (DI)
	VCVTPS2PH  $0, Z1, 32(DI)
	ADDQ       $64, SI
	ADDQ       $64, DI
	SUBQ       $32, CX
	JNZ        next
	endProduct16
	RET

// func productFloat16x8(to, from *uint16, n int, x float32, most *[16]uint32)
TEXT ·productFloat16x8(SB), NOSPLIT, $0-40
	beginProduct8
next:
	VCVTPH2PS  (SI), Y0
	VCVTPH2PS  16(SI), Y1
	product8
	VCVTPS2PH  $0, Y0, (DI)
	VCVTPS2PH  $0, Y1, 16(DI)
	ADDQ       $32, SI
	ADDQ       $32, DI
	SUBQ       $16, CX
	JNZ        next
	endProduct8
	RET

// func lerpBFloat16x16(to, from *uint16, n int, w float32, ofG uint32)
TEXT ·lerpBFloat16x16(SB), NOSPLIT, $0-32
	beginLerp16
	constants16
next:
	VPMOVZXWD  (DI), Z0
	VPMOVZXWD  32(DI), Z1
	VPMOVZXWD  (SI), Z4
	VPMOVZXWD  32(SI), Z5
	VPSLLD     $16, Z0, Z0
	VPSLLD     $16, Z1, Z1
	VPSLLD     $16, Z4, Z4
	VPSLLD     $16, Z5, Z5
	lerp16
	round16
	JNE        nan
pack:
	pack16
	ADDQ       $64, SI
	ADDQ       $64, DI
	SUBQ       $32, CX
	JNZ        next
	VZEROUPPER
	RET
nan:
	nan16
	JMP        pack

// func lerpBFloat16x8(to, from *uint16, n int, w float32, ofG uint32)
TEXT ·lerpBFloat16x8(SB), NOSPLIT, $0-32
	beginLerp8
	constants8
next:
	VPMOVZXWD  (DI), Y0
	VPMOVZXWD  16(DI), Y1
	VPMOVZXWD  (SI), Y4
	VPMOVZXWD  16(SI), Y5
	VPSLLD     $16, Y0, Y0
	VPSLLD     $16, Y1, Y1
	VPSLLD     $16, Y4, Y4
	VPSLLD     $16, Y5, Y5
	lerp8
	round8
	JNE        nan
pack:
	pack8
	ADDQ       $32, SI
	ADDQ       $32, DI
	SUBQ       $16, CX
	JNZ        next
	VZEROUPPER
	RET
nan:
	nan8
	JMP        pack

// func lerpFloat16x16(to, from *uint16, n int, w float32, ofG uint32)
TEXT ·lerpFloat16x16(SB), NOSPLIT, $0-32
	beginLerp16
next:
	VCVTPH2PS  (DI), Z0
	VCVTPH2PS  32(DI), Z1
	VCVTPH2PS  (SI), Z4
	VCVTPH2PS  32(SI), Z5
	lerp16
	VCVTPS2PH  $0, Z0, (DI)
	VCVTPS2PH  $0, Z1, 32(DI)
	ADDQ       $64, SI
	ADDQ       $64, DI
	SUBQ       $32, CX
	JNZ        next
	VZEROUPPER
	RET

// func lerpFloat16x8(to, from *uint16, n int, w float32, ofG uint32)
TEXT ·lerpFloat16x8(SB), NOSPLIT, $0-32
	beginLerp8
next:
	VCVTPH2PS  (DI), Y0
	VCVTPH2PS  16(DI), Y1
	VCVTPH2PS  (SI), Y4
	VCVTPH2PS  16(SI), Y5
	lerp8
	VCVTPS2PH  $0, Y0, (DI)
	VCVTPS2PH  $0, Y1, 16(DI)
	ADDQ       $32, SI
	ADDQ       $32, DI
	SUBQ       $16, CX
	JNZ        next
	VZEROUPPER
	RET
