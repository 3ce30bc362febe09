// Package bindings is what gopy exports to Python: Step, which steps groups of parameters, and what does not fit it.
//
// Every function has (int64, error) for results: an error-only result would leak. Booleans are int64, 0 for false. A
// panic becomes an error. An error whose text begins with the name of an exception of Python and a colon becomes that
// exception in bindings/_core/gather.c; any other a RuntimeError.
package bindings

import (
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/goptim/goptim/bindings/internal/cmath"
	"github.com/goptim/goptim/bindings/internal/openmp"
	"github.com/goptim/goptim/goptim"
	"github.com/goptim/goptim/internal/steps"
)

// Version names the Go release and the width in bits of the vectors that this process uses.
func Version() string { return fmt.Sprintf("%s simd=%d", runtime.Version(), steps.VectorBits) }

// Kind is the number by which Step knows an optimizer's class, or for Muon one half of its step.
func Kind(name string) (int64, error) {
	kind, err := steps.Find(name)
	return int64(kind), err
}

// Describe says in JSON what Step has to be given: a steps.Description.
func Describe() (string, error) { return steps.Describe() }

// Step steps groups by a kind, from the address of the first steps.Group on, and returns the number of rows.
func Step(kind, groups, threads int64) (n int64, err error) {
	defer enter(&err)()
	kinds := steps.Kinds()
	if kind < 0 || kind >= int64(len(kinds)) {
		return 0, fmt.Errorf("goptim: kind %d, expected one of %d", kind, len(kinds))
	}
	return kinds[kind].Call(uintptr(groups), steps.Call{
		Threads: int(max(threads, 1)), OnlyCheck: threads < 0, Team: openmp.Team(), Pow: cmath.Pow,
	})
}

// LBFGS resumes the machine at an address, of a size in bytes, until it asks for something: see Machine, Resume and Ask in
// goptim/internal/lbfgs.
func LBFGS(machine, size, threads int64) (ask int64, err error) {
	defer enter(&err)()
	return steps.ResumeLBFGS(uintptr(machine), int(size), int(threads), openmp.Team())
}

// OpenMP has steps run on the threads of OpenMP instead of Go's: parallel and number are the addresses of libgomp's
// GOMP_parallel and omp_get_thread_num; 0 for Go's threads.
func OpenMP(parallel, number int64) (n int64, err error) {
	defer enter(&err)()
	openmp.Use(uintptr(parallel), uintptr(number))
	return parallel, nil
}

// Reserve has Go start its threads now, as many as threads beside the caller's, where later there may be no room for them:
// Go ends the process if it cannot start one.
func Reserve(threads int64) (n int64, err error) {
	defer enter(&err)()
	openmp.Reserve(int(threads))
	return threads, nil
}

// enter makes a fault at a bad address a panic; what it returns, deferred, makes a panic an error.
func enter(err *error) func() {
	debug.SetPanicOnFault(true)
	return func() {
		if e := recover(); e != nil {
			*err = fmt.Errorf("goptim: panic in Go: %v\n%s", e, debug.Stack())
		}
		*err = named(*err)
	}
}

// named begins the text of an error with the exception that it is in Python, unless that is a RuntimeError, which gopy
// makes of any error.
func named(err error) error {
	var scalar *goptim.ScalarError
	if errors.As(err, &scalar) && scalar.Exception != "RuntimeError" {
		return fmt.Errorf("%s: %w", scalar.Exception, err)
	}
	return err
}
