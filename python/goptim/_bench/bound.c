/* The memory bound of an optimizer step: a pass over the same bytes that reads every tensor and writes all but the
 * gradient, with one XOR as its only arithmetic. columns[0] is the parameter, columns[1] the gradient, the others state. */
#include <stddef.h>
#include <stdint.h>

#define PASS(BODY) for (ptrdiff_t i = lo; i < hi; i++) { uint32_t x = g[i]; BODY }

#define PASS_OF(NAME) \
static void NAME(uint32_t **columns, int n_columns, ptrdiff_t lo, ptrdiff_t hi) \
{ \
	uint32_t *restrict p = columns[0], *restrict g = columns[1]; \
	uint32_t *restrict a = columns[2], *restrict b = columns[3], *restrict c = columns[4], *restrict d = columns[5]; \
	switch (n_columns) { \
	case 2: PASS(p[i] ^= x;) break; \
	case 3: PASS(p[i] ^= x; a[i] ^= x;) break; \
	case 4: PASS(p[i] ^= x; a[i] ^= x; b[i] ^= x;) break; \
	case 5: PASS(p[i] ^= x; a[i] ^= x; b[i] ^= x; c[i] ^= x;) break; \
	case 6: PASS(p[i] ^= x; a[i] ^= x; b[i] ^= x; c[i] ^= x; d[i] ^= x;) break; \
	} \
}

/* Which vectors reach the higher bandwidth depends on the CPU: those of 512 bits on an Intel Xeon, those of 256, which
 * compilers prefer, on a Zen 4. */
PASS_OF(pass)
#if defined(__AVX512F__) && defined(__GNUC__) && !defined(__clang__)
__attribute__((target("prefer-vector-width=512")))
#endif
PASS_OF(pass_wide)

/* bound passes over n_tensors tensors of six column addresses each (unused ones null) and words 32-bit words. wide: whether
 * to use the widest vectors instead of those that the compiler prefers. */
void bound(uint32_t **columns, const int64_t *words, int64_t n_tensors, int n_columns, int threads, int wide)
{
	int64_t total = 0;
	for (int64_t t = 0; t < n_tensors; t++) total += words[t];
	if (threads > 1 && total < 1 << 19) threads = 1;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
	for (int part = 0; part < threads; part++) {
		int64_t at = 0, from = total / threads * part, to = part + 1 == threads ? total : from + total / threads;
		for (int64_t t = 0; t < n_tensors && at < to; at += words[t], t++) {
			int64_t lo = from > at ? from - at : 0, hi = to - at < words[t] ? to - at : words[t];
			if (lo < hi) (wide ? pass_wide : pass)(columns + 6 * t, n_columns, lo, hi);
		}
	}
}
