#include <signal.h>
#include <stdint.h>

#include "_cgo_export.h"

/* The control bits of a thread's floating-point state: rounding mode, and whether subnormal numbers are treated as zero. */
#if defined(__x86_64__)
typedef unsigned Floats;
enum { FLAGS = 0x3f }; /* the exception flags of MXCSR */
static Floats get_floats(void) { return __builtin_ia32_stmxcsr() & ~FLAGS; }
static void set_floats(Floats x) { __builtin_ia32_ldmxcsr(x); }
#elif defined(__aarch64__)
typedef uint64_t Floats;
static Floats get_floats(void)
{
	Floats x;
	__asm__ volatile("mrs %0, fpcr" : "=r"(x));
	return x;
}
static void set_floats(Floats x) { __asm__ volatile("msr fpcr, %0" : : "r"(x)); }
#else
typedef int Floats;
static Floats get_floats(void) { return 0; }
static void set_floats(Floats x) { (void)x; }
#endif

/* goptim_enter is called before every call into Go, and acts only on the first one of a thread. Go's runtime unblocks SIGCHLD
 * and SIGPROF in the thread, which is undone. Signals are blocked until the goroutine of the thread has a stack that is large
 * enough for signal handlers. */
void goptim_enter(void)
{
	static __thread int known;
	sigset_t all, mask;
	if (known) return;
	known = 1;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &mask);
	goptim_prepare();
	pthread_sigmask(SIG_SETMASK, &mask, NULL);
}

/* GOMP_parallel of GNU's libgomp, https://gcc.gnu.org/onlinedocs/libgomp/Implementing-PARALLEL-construct.html */
typedef void Parallel(void (*function)(void *), void *data, unsigned threads, unsigned flags);

/* omp_get_thread_num of OpenMP's API: 0 in the calling thread. */
typedef int Number(void);

typedef struct {
	Number *number;
	Floats floats;
} Team;

static void work(void *data)
{
	const Team *team = data;
	Floats own = get_floats();
	goptim_enter();
	set_floats(team->floats);
	goptim_openmp_work(team->number());
	set_floats(own);
}

void goptim_team(uintptr_t parallel, uintptr_t number, unsigned threads)
{
	Team team = {(Number *)number, get_floats()};
	((Parallel *)parallel)(work, &team, threads, 0);
}
