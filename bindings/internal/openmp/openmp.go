// Package openmp runs Go on the threads of the process's OpenMP, those of torch's other work.
//
// After torch's parallel operations these spin for milliseconds, in wait for the next, on the cores that a thread of
// Go's would have to share with them. As the next, a step starts at once.
package openmp

/*
#include <stdint.h>
#include <unistd.h>

void goptim_team(uintptr_t parallel, uintptr_t number, unsigned threads);
*/
import "C"

import (
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"github.com/goptim/goptim/bindings/internal/room"
)

var (
	parallel, number atomic.Uintptr
	mu               sync.Mutex
	current          func(thread int)
	procs            = runtime.GOMAXPROCS(0) // guarded by mu
)

// Use makes the functions GOMP_parallel and omp_get_thread_num at two addresses what Team uses; 0 for none.
//
// The process's threads are its own affair, whatever Go has counted: the variable GOMAXPROCS, a limit of the cgroup, or
// the CPUs that the main thread may use, which is a single one where OpenMP binds its threads.
func Use(gompParallel, ompGetThreadNum uintptr) {
	mu.Lock()
	defer mu.Unlock()
	number.Store(ompGetThreadNum)
	parallel.Store(gompParallel)
	procs = max(procs, int(C.sysconf(C._SC_NPROCESSORS_CONF)))
	runtime.GOMAXPROCS(procs) // even if it is as many: Go then stops adapting the number by itself
}

// Reserve starts threads of Go's at the same time. They wait for work when it returns, and Go uses no more of them at the
// same time until Team does.
func Reserve(threads int) {
	mu.Lock()
	defer mu.Unlock()
	procs = threads
	defer runtime.GOMAXPROCS(procs)
	var started, done sync.WaitGroup
	begin := make(chan struct{})
	for range threads {
		started.Add(1)
		done.Go(func() {
			runtime.LockOSThread() // for the others to take threads of their own
			defer runtime.UnlockOSThread()
			started.Done()
			<-begin
		})
	}
	started.Wait()
	close(begin)
	done.Wait()
}

// allow has Go run on as many as threads threads at the same time.
func allow(threads int) {
	if threads > procs {
		procs = threads
		runtime.GOMAXPROCS(threads)
	}
}

// Team runs work on threads of OpenMP, as goptim.Table wants it; nil if there is no OpenMP to use. The threads compute in
// the rounding mode of the caller's, and flush subnormal numbers to zero if that does.
func Team() func(threads int, work func(thread int)) {
	if parallel.Load() == 0 || number.Load() == 0 {
		return nil
	}
	return team
}

func team(threads int, work func(thread int)) {
	mu.Lock()
	defer mu.Unlock()
	allow(threads)
	current = work
	C.goptim_team(C.uintptr_t(parallel.Load()), C.uintptr_t(number.Load()), C.unsigned(threads))
	current = nil
}

//export goptim_openmp_work
func goptim_openmp_work(thread C.int) {
	debug.SetPanicOnFault(true)
	current(int(thread))
}

//export goptim_prepare
func goptim_prepare() { room.Make() }
