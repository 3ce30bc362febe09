/* Steps of AdamW, RMSprop and Rprop written by hand with AVX-512 or AVX2 intrinsics, depending on -march. Their results
 * are bit-for-bit those of torch's for-loop. Unlike goptim's kernels, they have no options for the sign of the gradient
 * and for coupled weight decay.
 *
 * A call steps tensors of n elements, a multiple of LANES. It repeats this `times` times to hide the call overhead. */
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __AVX512DQ__
#define LANES 16
#define OP(NAME) _mm512_##NAME##_ps
typedef __m512 V;
typedef __mmask16 M;
#define GREATER(A, B) _mm512_cmp_ps_mask(A, B, _CMP_GT_OQ)
#define DIFFER(A, B) _mm512_cmp_ps_mask(A, B, _CMP_NEQ_OQ)
#define IF(MASK, A, B) _mm512_mask_blend_ps(MASK, B, A)
#define ZERO_IF_NOT(MASK, A) _mm512_maskz_mov_ps(MASK, A)
#elif defined __AVX2__ && defined __FMA__
#define LANES 8
#define OP(NAME) _mm256_##NAME##_ps
typedef __m256 V;
typedef __m256 M;
#define GREATER(A, B) _mm256_cmp_ps(A, B, _CMP_GT_OQ)
#define DIFFER(A, B) _mm256_cmp_ps(A, B, _CMP_NEQ_OQ)
#define IF(MASK, A, B) _mm256_blendv_ps(B, A, MASK)
#define ZERO_IF_NOT(MASK, A) _mm256_and_ps(MASK, A)
#else
#error "needs AVX2 and FMA"
#endif

int lanes(void) { return LANES; }

#ifdef STREAM /* non-temporal stores */
#define STORE(AT, X) OP(stream)(AT, X)
#else
#define STORE(AT, X) OP(storeu)(AT, X)
#endif
#ifdef AHEAD /* prefetch distance in bytes */
#define PREFETCH(AT) _mm_prefetch((const char *)(AT) + AHEAD, _MM_HINT_T0)
#else
#define PREFETCH(AT) (void)0
#endif
#ifndef UNROLL
#define UNROLL 2
#endif
#define DO_PRAGMA(X) _Pragma(#X)
#define UNROLLED(N) DO_PRAGMA(GCC unroll N)

/* A kernel is a loop over vectors of a parameter, a gradient and up to three states. */
#define KERNEL(NAME, SCALARS, BODY)                                                                                    \
	void NAME(float *restrict p, const float *restrict g, float *restrict a, float *restrict b, float *restrict c,     \
	          ptrdiff_t n, int64_t times, const float *restrict h)                                                     \
	{                                                                                                                  \
		(void)b, (void)c;                                                                                              \
		SCALARS                                                                                                        \
		while (times-- > 0) {                                                                                          \
			__asm__ volatile("" ::: "memory");                                                                         \
			UNROLLED(UNROLL)                                                                                           \
			for (ptrdiff_t i = 0; i < n; i += LANES) { BODY }                                                          \
		}                                                                                                              \
	}
#define SET(I) OP(set1)(h[I])

#ifndef BREAK /* changes the results of all kernels, for the test of check_bits */
#define BREAK 0
#endif

/* h: 1 - lr*weight_decay, 1 - beta1 (below 0.5), beta2, 1 - beta2, -lr/(1 - beta1^t), sqrt(1 - beta2^t), its
 * reciprocal, eps. The quotient by a constant is rounded as a division: Brisebarre, Muller & Raina (2004). */
KERNEL(adamw,
	V decay = SET(0); V c1 = SET(1); V beta2 = SET(2); V c2 = SET(3);
	V step = SET(4); V by = SET(5); V recip = SET(6); V eps = SET(7);
	V most = OP(set1)(3.40282347e38f);,
	PREFETCH(p + i); PREFETCH(g + i); PREFETCH(a + i); PREFETCH(b + i);
	V gi = OP(loadu)(g + i); V m = OP(loadu)(a + i);
	m = OP(fmadd)(OP(sub)(gi, m), c1, m);
	V v = OP(fmadd)(OP(mul)(c2, gi), gi, OP(mul)(OP(loadu)(b + i), beta2));
	STORE(a + i, BREAK ? gi : m); STORE(b + i, v);
	V root = OP(sqrt)(v); V q = OP(min)(OP(mul)(root, recip), most);
	q = OP(fmadd)(OP(fnmadd)(by, q, root), recip, q);
	STORE(p + i, OP(add)(OP(mul)(OP(loadu)(p + i), decay), OP(div)(OP(mul)(step, m), OP(add)(q, eps))));)

/* h: alpha, 1 - alpha, eps, -lr */
KERNEL(rmsprop,
	V alpha = SET(0); V c1 = SET(1); V eps = SET(2); V step = SET(3);,
	PREFETCH(p + i); PREFETCH(g + i); PREFETCH(a + i);
	V gi = OP(loadu)(g + i);
	V v = OP(fmadd)(OP(mul)(c1, gi), gi, OP(mul)(OP(loadu)(a + i), alpha));
	STORE(a + i, v);
	V root = BREAK ? OP(sqrt)(OP(add)(v, eps)) : OP(add)(OP(sqrt)(v), eps);
	STORE(p + i, OP(add)(OP(loadu)(p + i), OP(div)(OP(mul)(step, gi), root)));)

/* h: alpha, 1 - alpha (below 0.5), eps, -lr, momentum; a: square_avg, b: momentum_buffer, c: grad_avg */
KERNEL(rmsprop_momentum_centered,
	V alpha = SET(0); V c1 = SET(1); V eps = SET(2); V step = SET(3); V momentum = SET(4);,
	PREFETCH(p + i); PREFETCH(g + i); PREFETCH(a + i); PREFETCH(b + i); PREFETCH(c + i);
	V gi = OP(loadu)(g + i); V average = OP(loadu)(c + i);
	V v = OP(fmadd)(OP(mul)(c1, gi), gi, OP(mul)(OP(loadu)(a + i), alpha));
	STORE(a + i, v);
	average = BREAK ? gi : OP(fmadd)(OP(sub)(gi, average), c1, average);
	STORE(c + i, average);
	V root = OP(add)(OP(sqrt)(OP(fnmadd)(average, average, v)), eps);
	V buffer = OP(add)(OP(mul)(OP(loadu)(b + i), momentum), OP(div)(gi, root));
	STORE(b + i, buffer);
	STORE(p + i, OP(fmadd)(buffer, step, OP(loadu)(p + i)));)

/* h: etaminus, etaplus, the smallest and the largest step size; a: prev, b: step_size */
KERNEL(rprop,
	V minus = SET(0); V plus = SET(1); V low = SET(2); V high = SET(3);
	V zero = OP(set1)(0); V one = OP(set1)(1); V sign = OP(set1)(-0.0f);,
	PREFETCH(p + i); PREFETCH(g + i); PREFETCH(a + i); PREFETCH(b + i);
	V d = OP(loadu)(g + i); V turned = OP(mul)(d, OP(loadu)(a + i));
	M down = GREATER(zero, turned);
	V factor = IF(GREATER(turned, zero), plus, IF(down, minus, one));
	V size = OP(min)(high, OP(max)(low, OP(mul)(OP(loadu)(b + i), factor))); /* both return a NaN in the second operand */
	d = BREAK ? d : IF(down, zero, d);
	STORE(b + i, size); STORE(a + i, d);
	V direction = ZERO_IF_NOT(DIFFER(d, zero), OP(or)(one, OP(and)(d, sign)));
	STORE(p + i, OP(fnmadd)(direction, size, OP(loadu)(p + i)));)
