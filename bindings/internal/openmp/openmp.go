// Package openmp runs Go on the threads of the process's OpenMP, those of torch's other work.
//
// After torch's parallel operations these spin for milliseconds, in wait for the next, on the cores that a thread of
// Go's would have to share with them. As the next, a step starts at once.
package openmp

/*
#include <stdint.h>

void goptim_openmp_work(void);

// GOMP_parallel of GNU's libgomp, https://gcc.gnu.org/onlinedocs/libgomp/Implementing-PARALLEL-construct.html
typedef void parallel(void (*function)(void *), void *data, unsigned threads, unsigned flags);

static void work(void *data) { goptim_openmp_work(); }
static void team(uintptr_t address, unsigned threads) { ((parallel *)address)(work, 0, threads, 0); }
*/
import "C"

import (
	"runtime/debug"
	"sync"
	"sync/atomic"
)

var (
	parallel atomic.Uintptr
	mu       sync.Mutex
	current  func()
)

// Use makes the function GOMP_parallel at an address the one that Team returns; 0 for none.
func Use(address uintptr) { parallel.Store(address) }

// Team runs work on threads of OpenMP, as goptim.Table wants it; nil if there is no OpenMP to use.
func Team() func(threads int, work func()) {
	if parallel.Load() == 0 {
		return nil
	}
	return team
}

func team(threads int, work func()) {
	mu.Lock()
	defer mu.Unlock()
	current = work
	C.team(C.uintptr_t(parallel.Load()), C.unsigned(threads))
	current = nil
}

//export goptim_openmp_work
func goptim_openmp_work() {
	debug.SetPanicOnFault(true)
	current()
}
