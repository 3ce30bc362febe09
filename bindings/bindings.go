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
	"unsafe"

	"github.com/goptim/goptim/bindings/internal/cmath"
	"github.com/goptim/goptim/bindings/internal/openmp"
	"github.com/goptim/goptim/goptim"
	"github.com/goptim/goptim/internal/hooks"
)

// Version names the Go release and the width in bits of the vectors that this process uses.
func Version() string { return fmt.Sprintf("%s simd=%d", runtime.Version(), goptim.VectorBits()) }

// Kind is the number by which Step knows an optimizer's class, or for Muon one half of its step.
func Kind(name string) (int64, error) {
	for i, k := range kinds {
		if k.name == name {
			return int64(i), nil
		}
	}
	return 0, fmt.Errorf("goptim: no kind %q", name)
}

// Step steps groups by a kind of options, from the address of the first group on, and returns the number of rows.
func Step(kind, groups, threads int64) (n int64, err error) {
	defer enter(&err)()
	if kind < 0 || kind >= int64(len(kinds)) {
		return 0, fmt.Errorf("goptim: kind %d, expected one of %d", kind, len(kinds))
	}
	return kinds[kind].step(groups, threads)
}

// kinds are what Step can do. A comment names the scalars of a group, in their order; flags are 0 for false.
var kinds = []struct {
	name string
	step func(groups, threads int64) (int64, error)
}{
	// lr, momentum, dampening, weight_decay, nesterov, maximize
	{"SGD", together(6, func(x []float64, _ *goptim.Table) goptim.SGDOptions {
		return goptim.SGDOptions{
			LR: x[0], Momentum: x[1], Dampening: x[2], WeightDecay: x[3], Nesterov: x[4] != 0, Maximize: x[5] != 0,
		}
	})},
	// lr, beta1, beta2, eps, weight_decay, amsgrad, maximize, decoupled_weight_decay
	{"Adam", together(8, func(x []float64, _ *goptim.Table) goptim.AdamOptions {
		return goptim.AdamOptions{
			LR: x[0], Betas: [2]float64{x[1], x[2]}, Eps: x[3], WeightDecay: x[4],
			AMSGrad: x[5] != 0, Maximize: x[6] != 0, DecoupledWeightDecay: x[7] != 0,
		}
	})},
	// lr, beta1, beta2, eps, weight_decay, amsgrad, maximize
	{"AdamW", together(7, func(x []float64, _ *goptim.Table) goptim.AdamOptions {
		return goptim.AdamOptions{
			LR: x[0], Betas: [2]float64{x[1], x[2]}, Eps: x[3], WeightDecay: x[4],
			AMSGrad: x[5] != 0, Maximize: x[6] != 0, DecoupledWeightDecay: true,
		}
	})},
	// lr, lr_decay, weight_decay, eps, maximize
	{"Adagrad", together(5, func(x []float64, _ *goptim.Table) goptim.AdagradOptions {
		return goptim.AdagradOptions{LR: x[0], LRDecay: x[1], WeightDecay: x[2], Eps: x[3], Maximize: x[4] != 0}
	})},
	// lr, rho, eps, weight_decay, maximize
	{"Adadelta", together(5, func(x []float64, _ *goptim.Table) goptim.AdadeltaOptions {
		return goptim.AdadeltaOptions{LR: x[0], Rho: x[1], Eps: x[2], WeightDecay: x[3], Maximize: x[4] != 0}
	})},
	// lr, beta1, beta2, eps, weight_decay, maximize
	{"Adamax", together(6, func(x []float64, _ *goptim.Table) goptim.AdamaxOptions {
		return goptim.AdamaxOptions{
			LR: x[0], Betas: [2]float64{x[1], x[2]}, Eps: x[3], WeightDecay: x[4], Maximize: x[5] != 0,
		}
	})},
	// lr, lambd, alpha, t0, weight_decay, maximize, whether torch's default dtype is float64
	{"ASGD", together(7, func(x []float64, t *goptim.Table) goptim.ASGDOptions {
		t.Float64 = x[6] != 0
		return goptim.ASGDOptions{
			LR: x[0], Lambd: x[1], Alpha: x[2], T0: x[3], WeightDecay: x[4], Maximize: x[5] != 0,
		}
	})},
	// lr, beta1, beta2, eps, weight_decay, momentum_decay, decoupled_weight_decay, maximize
	{"NAdam", together(8, func(x []float64, _ *goptim.Table) goptim.NAdamOptions {
		return goptim.NAdamOptions{
			LR: x[0], Betas: [2]float64{x[1], x[2]}, Eps: x[3], WeightDecay: x[4], MomentumDecay: x[5],
			DecoupledWeightDecay: x[6] != 0, Maximize: x[7] != 0,
		}
	})},
	// lr, beta1, beta2, eps, weight_decay, decoupled_weight_decay, maximize
	{"RAdam", together(7, func(x []float64, _ *goptim.Table) goptim.RAdamOptions {
		return goptim.RAdamOptions{
			LR: x[0], Betas: [2]float64{x[1], x[2]}, Eps: x[3], WeightDecay: x[4],
			DecoupledWeightDecay: x[5] != 0, Maximize: x[6] != 0,
		}
	})},
	// lr, alpha, eps, weight_decay, momentum, centered, maximize
	{"RMSprop", together(7, func(x []float64, _ *goptim.Table) goptim.RMSpropOptions {
		return goptim.RMSpropOptions{
			LR: x[0], Alpha: x[1], Eps: x[2], WeightDecay: x[3], Momentum: x[4], Centered: x[5] != 0, Maximize: x[6] != 0,
		}
	})},
	// lr, etaminus, etaplus, the smallest and the largest step size, maximize
	{"Rprop", together(6, func(x []float64, _ *goptim.Table) goptim.RpropOptions {
		return goptim.RpropOptions{
			LR: x[0], Etas: [2]float64{x[1], x[2]}, StepSizes: [2]float64{x[3], x[4]}, Maximize: x[5] != 0,
		}
	})},
	// lr, beta2_decay, eps1, eps2, d, weight_decay, maximize, whether torch's norms fuse all squares into their sum
	{"Adafactor", together(8, func(x []float64, t *goptim.Table) goptim.AdafactorOptions {
		t.FusedNorms = x[7] != 0
		return goptim.AdafactorOptions{
			LR: x[0], Beta2Decay: x[1], Eps: [2]float64{x[2], x[3]}, D: x[4], WeightDecay: x[5], Maximize: x[6] != 0,
		}
	})},
	// lr, eps1, eps2, clip_threshold, decay_rate, whether there is a beta1, beta1, weight_decay, scale_parameter,
	// relative_step, warmup_init, fused norms as Adafactor's, whether to write nothing
	{"HFAdafactor", each(13, func(x []float64, t goptim.Table) error {
		t.FusedNorms = x[11] != 0
		return goptim.HFAdafactorOptions{
			LR: x[0], Eps: [2]float64{x[1], x[2]}, ClipThreshold: x[3], DecayRate: x[4],
			Averages: x[5] != 0, Beta1: x[6], WeightDecay: x[7],
			ScaleParameter: x[8] != 0, RelativeStep: x[9] != 0, WarmupInit: x[10] != 0,
			OnlyCheck: x[12] != 0,
		}.StepTable(t)
	})},
	// momentum, nesterov
	{"MuonMomentum", each(2, func(x []float64, t goptim.Table) error {
		return goptim.MuonOptions{Momentum: x[0], Nesterov: x[1] != 0}.MomentumTable(t)
	})},
	// The matrices' height and width, lr, weight_decay, a goptim.LRAdjustment.
	{"MuonUpdate", each(5, func(x []float64, t goptim.Table) error {
		o := goptim.MuonOptions{LR: x[2], WeightDecay: x[3], AdjustLR: goptim.LRAdjustment(x[4])}
		return o.UpdateTable(t, int(x[0]), int(x[1]))
	})},
}

// SparseSGD steps one parameter: see goptim.SGDOptions.StepSparse.
func SparseSGD(param, state1, state2, rows, width, float64s, indices, values, order, count, threads int64, step, lr float64, maximize int64) (n int64, err error) {
	defer enter(&err)()
	o := goptim.SGDOptions{LR: lr, Maximize: maximize != 0}
	return count, o.StepSparse(sparseTableOf(param, state1, state2, rows, width, float64s, indices, values, order, count, threads, step))
}

// SparseAdagrad steps one parameter: see goptim.AdagradOptions.StepSparse.
func SparseAdagrad(param, state1, state2, rows, width, float64s, indices, values, order, count, threads int64, step, lr, lrDecay, eps float64, maximize int64) (n int64, err error) {
	defer enter(&err)()
	o := goptim.AdagradOptions{LR: lr, LRDecay: lrDecay, Eps: eps, Maximize: maximize != 0}
	return count, o.StepSparse(sparseTableOf(param, state1, state2, rows, width, float64s, indices, values, order, count, threads, step))
}

// SparseAdam steps one parameter: see goptim.SparseAdamOptions.StepSparse.
func SparseAdam(param, state1, state2, rows, width, float64s, indices, values, order, count, threads int64, step, lr, beta1, beta2, eps float64, maximize int64) (n int64, err error) {
	defer enter(&err)()
	o := goptim.SparseAdamOptions{LR: lr, Betas: [2]float64{beta1, beta2}, Eps: eps, Maximize: maximize != 0}
	return count, o.StepSparse(sparseTableOf(param, state1, state2, rows, width, float64s, indices, values, order, count, threads, step))
}

// LBFGS resumes the machine at an address, of a size in bytes, until it asks for something: see Machine, Resume and Ask in
// goptim/internal/lbfgs.
func LBFGS(machine, size, threads int64) (ask int64, err error) {
	defer enter(&err)()
	return hooks.ResumeLBFGS(uintptr(machine), int(size), int(threads), openmp.Team())
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

// A group is what a step takes of one: a table, and the scalars of its options. bindings/_core/gather.c writes it.
type group struct {
	next    int64 // the address of the next group; 0 behind the last
	table   int64 // its address
	rows    int64
	count   int64 // of the scalars
	scalars [16]float64
}

// together makes options of each group's scalars, which may set what else a table says, and steps all groups as one
// piece of work.
func together[O goptim.TableOptions[O]](scalars int64, options func(x []float64, t *goptim.Table) O) func(groups, threads int64) (int64, error) {
	return func(groups, threads int64) (int64, error) {
		n, rows, err := check(groups, scalars)
		if err != nil {
			return 0, err
		}
		o, t := make([]O, n), make([]goptim.Table, n)
		for i := range t {
			g := (*group)(pointer(groups))
			t[i] = tableOf(g, threads)
			o[i] = options(g.scalars[:scalars], &t[i])
			groups = g.next
		}
		return rows, goptim.StepTables(o, t)
	}
}

// each steps one group after the other.
func each(scalars int64, step func(x []float64, t goptim.Table) error) func(groups, threads int64) (int64, error) {
	return func(groups, threads int64) (int64, error) {
		n, rows, err := check(groups, scalars)
		for ; n > 0 && err == nil; n-- {
			g := (*group)(pointer(groups))
			err = step(g.scalars[:scalars], tableOf(g, threads))
			groups = g.next
		}
		return rows, err
	}
}

// check counts groups and their rows.
func check(groups, scalars int64) (n int, rows int64, err error) {
	for at := groups; at != 0 || n == 0; n++ {
		if at < 4096 || at%8 != 0 {
			return 0, 0, fmt.Errorf("goptim: group %d is at %#x", n, at)
		}
		g := (*group)(pointer(at))
		if g.count != scalars {
			return 0, 0, fmt.Errorf("goptim: group %d has %d scalars, expected %d", n, g.count, scalars)
		}
		at, rows = g.next, rows+g.rows
	}
	return n, rows, nil
}

func pointer(address int64) unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Pointer(&address)) }

func tableOf(g *group, threads int64) goptim.Table {
	return goptim.Table{
		Address: uintptr(g.table), Rows: int(g.rows), Threads: int(max(threads, 1)), Team: openmp.Team(), Pow: cmath.Pow,
		OnlyCheck: threads < 0,
	}
}

func sparseTableOf(param, state1, state2, rows, width, float64s, indices, values, order, count, threads int64, step float64) goptim.SparseTable {
	t := goptim.SparseTable{
		Param: uintptr(param), Rows: int(rows), Width: int(width), Float64: float64s != 0,
		Indices: uintptr(indices), Values: uintptr(values), Order: uintptr(order), N: int(count),
		Step: step, Threads: int(threads), Team: openmp.Team(), Pow: cmath.Pow,
	}
	t.State[0], t.State[1] = uintptr(state1), uintptr(state2)
	return t
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
