// Package openmp runs Go on the threads of the process's OpenMP, those of torch's other work.
//
// After torch's parallel operations these spin for milliseconds, in wait for the next, on the cores that a thread of
// Go's would have to share with them. As the next, a step starts at once.
package openmp

/*
#include <stdint.h>

void goptim_openmp_work(int thread);

// GOMP_parallel of GNU's libgomp, https://gcc.gnu.org/onlinedocs/libgomp/Implementing-PARALLEL-construct.html
typedef void parallel(void (*function)(void *), void *data, unsigned threads, unsigned flags);

// omp_get_thread_num of OpenMP's API: 0 for the caller's.
typedef int number(void);

static void work(void *data) { goptim_openmp_work(((number *)data)()); }
static void team(uintptr_t address, uintptr_t number, unsigned threads)
{
	((parallel *)address)(work, (void *)number, threads, 0);
}
*/
import "C"

import (
	"runtime/debug"
	"sync"
	"sync/atomic"
)

var (
	parallel, number atomic.Uintptr
	mu               sync.Mutex
	current          func(thread int)
)

// Use makes the functions GOMP_parallel and omp_get_thread_num at two addresses what Team uses; 0 for none.
func Use(gompParallel, ompGetThreadNum uintptr) {
	number.Store(ompGetThreadNum)
	parallel.Store(gompParallel)
}

// Team runs work on threads of OpenMP, as goptim.Table wants it; nil if there is no OpenMP to use.
func Team() func(threads int, work func(thread int)) {
	if parallel.Load() == 0 || number.Load() == 0 {
		return nil
	}
	return team
}

func team(threads int, work func(thread int)) {
	mu.Lock()
	defer mu.Unlock()
	current = work
	C.team(C.uintptr_t(parallel.Load()), C.uintptr_t(number.Load()), C.unsigned(threads))
	current = nil
}

//export goptim_openmp_work
func goptim_openmp_work(thread C.int) {
	debug.SetPanicOnFault(true)
	current(int(thread))
}
