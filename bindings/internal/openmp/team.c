#include <signal.h>
#include <stdint.h>

#include "_cgo_export.h"

/* The control bits of a thread's floating-point state: how it rounds, and whether subnormal numbers count as zero. */
#if defined(__x86_64__)
typedef unsigned Floats;
enum { FLAGS = 0x3f }; /* of MXCSR: what has happened so far */
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

/* goptim_enter comes before every call of Go, and does something in a thread that has not called Go yet. Go's runtime
 * unblocks SIGCHLD and SIGPROF there, and leaves them so, which is undone. And no signal comes until the goroutine that
 * Go keeps for the thread has a stack on which handlers can run. */
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

/* omp_get_thread_num of OpenMP's API: 0 for the caller's. */
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
