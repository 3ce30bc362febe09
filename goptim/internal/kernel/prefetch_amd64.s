#include "textflag.h"

// func Prefetch(addresses []uintptr, lines int)
TEXT ·Prefetch(SB), NOSPLIT, $0-32
	MOVQ addresses_base+0(FP), SI
	MOVQ addresses_len+8(FP), DX
next:
	DECQ DX
	JLT  done
	MOVQ (SI), AX
	ADDQ $8, SI
	MOVQ lines+24(FP), CX
line:
	DECQ CX
	JLT  next
	PREFETCHT1 (AX)
	ADDQ $64, AX
	JMP  line
done:
	RET
