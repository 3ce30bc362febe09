// Package openmp runs Go on the process's OpenMP threads, which torch also uses.
//
// After a parallel operation of torch they spin for milliseconds to wait for the next one, and would share their cores with
// Go's threads. A step on the same threads starts immediately.
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

// Use sets the addresses of the functions GOMP_parallel and omp_get_thread_num for Team; 0 for none.
//
// The number of threads is independent of Go's limit, which comes from the variable GOMAXPROCS, the control group, or the CPUs of
// the main thread. This is a single CPU if OpenMP binds its threads.
func Use(gompParallel, ompGetThreadNum uintptr) {
	mu.Lock()
	defer mu.Unlock()
	number.Store(ompGetThreadNum)
	parallel.Store(gompParallel)
	procs = max(procs, int(C.sysconf(C._SC_NPROCESSORS_CONF)))
	runtime.GOMAXPROCS(procs) // also if it does not change the number, since Go then stops adjusting it
}

// Reserve starts threads of Go's runtime, which are idle when it returns. Go does not use more of them concurrently until Team
// does.
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
			runtime.LockOSThread() // forces the others onto other threads
			defer runtime.UnlockOSThread()
			started.Done()
			<-begin
		})
	}
	started.Wait()
	close(begin)
	done.Wait()
}

// allow lets Go run on the given number of threads concurrently.
func allow(threads int) {
	if threads > procs {
		procs = threads
		runtime.GOMAXPROCS(threads)
	}
}

// Team returns a goptim.Team that runs on OpenMP's threads; nil if there is no OpenMP. The threads use the caller's rounding mode
// and treatment of subnormal numbers.
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
