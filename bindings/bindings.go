// Package bindings is the package that gopy exports to Python: Step, which steps groups of parameters, and the functions
// that do not fit Step's signature.
//
// The results of every function are (int64, error) or (string, error), or a string alone: a function with only an error
// result would leak memory. Booleans are int64, 0 for false. A panic becomes an error. If an error's text begins with the
// name of a Python exception and a colon, bindings/_core/gather.c raises that exception; otherwise it raises
// RuntimeError.
package bindings

import (
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/goptim/goptim/bindings/internal/cmath"
	"github.com/goptim/goptim/bindings/internal/openmp"
	"github.com/goptim/goptim/bindings/internal/room"
	"github.com/goptim/goptim/goptim"
	"github.com/goptim/goptim/internal/steps"
)

// Version returns the Go release and the width in bits of the vectors that this process uses.
func Version() string { return fmt.Sprintf("%s simd=%d", runtime.Version(), steps.VectorBits) }

// Kind returns the number by which Step knows an optimizer's class, or for Muon one half of its step.
func Kind(name string) (int64, error) {
	kind, err := steps.Find(name)
	return int64(kind), err
}

// Describe returns the arguments that Step expects: a steps.Description in JSON.
func Describe() (string, error) { return steps.Describe() }

// Step steps groups with a kind and returns the number of rows. The argument groups is the address of the first
// steps.Group. If threads is negative, Step only checks.
func Step(kind, groups, threads int64) (n int64, err error) {
	defer enter(&err)()
	kinds := steps.Kinds()
	if kind < 0 || kind >= int64(len(kinds)) {
		return 0, fmt.Errorf("goptim: kind %d, expected one of %d", kind, len(kinds))
	}
	return kinds[kind].Call(uintptr(groups), steps.Call{
		Threads: int(max(threads, 1)), OnlyCheck: threads < 0, Team: openmp.Team(), Pow: cmath.Pow, Exp: cmath.Exp, Log: cmath.Log,
	})
}

// LBFGS resumes the machine at an address, whose size is in bytes, until it has a request for the caller. See Machine,
// Resume and Ask in goptim/internal/lbfgs.
func LBFGS(machine, size, threads int64) (ask int64, err error) {
	defer enter(&err)()
	return steps.ResumeLBFGS(uintptr(machine), int(size), int(threads), openmp.Team())
}

// OpenMP makes steps run on OpenMP's threads instead of Go's. The arguments are the addresses of libgomp's GOMP_parallel
// and omp_get_thread_num, or 0 to use Go's threads.
func OpenMP(parallel, number int64) (n int64, err error) {
	defer enter(&err)()
	openmp.Use(uintptr(parallel), uintptr(number))
	return parallel, nil
}

// Reserve makes Go's heap larger and starts Go's threads now, as many as threads in addition to the caller's, because later
// there may not be enough address space for them. Go terminates the process if a small allocation fails or a thread cannot be
// started. If threads is 0, threads are started when they are needed.
func Reserve(threads int64) (n int64, err error) {
	defer enter(&err)()
	room.Heap()
	if threads > 0 {
		openmp.Reserve(int(threads))
	}
	return threads, nil
}

// enter turns a fault at an invalid address into a panic. The function that it returns is deferred and turns a panic into
// an error.
func enter(err *error) func() {
	debug.SetPanicOnFault(true)
	return func() {
		if e := recover(); e != nil {
			*err = fmt.Errorf("goptim: panic in Go: %v\n%s", e, debug.Stack())
		}
		*err = named(*err)
	}
}

// named prefixes the text of an error with the name of its Python exception, except for RuntimeError, which gopy raises
// for any error.
func named(err error) error {
	var scalar *goptim.ScalarError
	if errors.As(err, &scalar) && scalar.Exception != "RuntimeError" {
		return fmt.Errorf("%s: %w", scalar.Exception, err)
	}
	return err
}
