// Package bindings is what gopy exports to Python: one function an optimizer, which steps a goptim.Table.
//
// Every function has numbers for arguments and (int64, error) for results: gopy carries these at 0.4 µs a call,
// and an error-only result would leak. Booleans are int64, 0 for false. A panic becomes an error.
//
// Most optimizers step all their groups in one call, goptim.StepTables, from the address of the first group on. The function's comment names a group's scalars; flags are 0 for false.
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
)

// Version names the Go release and the width in bits of the vectors that this process uses.
func Version() string { return fmt.Sprintf("%s simd=%d", runtime.Version(), goptim.VectorBits()) }

// SGD steps groups: lr, momentum, dampening, weight_decay, nesterov, maximize.
func SGD(groups, threads int64) (n int64, err error) {
	defer enter(&err)()
	return step(groups, threads, 6, func(x []float64, _ *goptim.Table) goptim.SGDOptions {
		return goptim.SGDOptions{
			LR: x[0], Momentum: x[1], Dampening: x[2], WeightDecay: x[3], Nesterov: x[4] != 0, Maximize: x[5] != 0,
		}
	})
}

// Adam steps groups: lr, beta1, beta2, eps, weight_decay, amsgrad, maximize, decoupled_weight_decay.
func Adam(groups, threads int64) (n int64, err error) {
	defer enter(&err)()
	return step(groups, threads, 8, func(x []float64, _ *goptim.Table) goptim.AdamOptions {
		return goptim.AdamOptions{
			LR: x[0], Betas: [2]float64{x[1], x[2]}, Eps: x[3], WeightDecay: x[4],
			AMSGrad: x[5] != 0, Maximize: x[6] != 0, DecoupledWeightDecay: x[7] != 0,
		}
	})
}

// AdamW steps groups: as Adam, with decoupled weight decay: lr, beta1, beta2, eps, weight_decay, amsgrad, maximize.
func AdamW(groups, threads int64) (n int64, err error) {
	defer enter(&err)()
	return step(groups, threads, 7, func(x []float64, _ *goptim.Table) goptim.AdamOptions {
		return goptim.AdamOptions{
			LR: x[0], Betas: [2]float64{x[1], x[2]}, Eps: x[3], WeightDecay: x[4],
			AMSGrad: x[5] != 0, Maximize: x[6] != 0, DecoupledWeightDecay: true,
		}
	})
}

// Adagrad steps groups: lr, lr_decay, weight_decay, eps, maximize.
func Adagrad(groups, threads int64) (n int64, err error) {
	defer enter(&err)()
	return step(groups, threads, 5, func(x []float64, _ *goptim.Table) goptim.AdagradOptions {
		return goptim.AdagradOptions{LR: x[0], LRDecay: x[1], WeightDecay: x[2], Eps: x[3], Maximize: x[4] != 0}
	})
}

// Adadelta steps groups: lr, rho, eps, weight_decay, maximize.
func Adadelta(groups, threads int64) (n int64, err error) {
	defer enter(&err)()
	return step(groups, threads, 5, func(x []float64, _ *goptim.Table) goptim.AdadeltaOptions {
		return goptim.AdadeltaOptions{LR: x[0], Rho: x[1], Eps: x[2], WeightDecay: x[3], Maximize: x[4] != 0}
	})
}

// Adafactor steps groups: lr, beta2_decay, eps1, eps2, d, weight_decay, maximize, and whether torch's norms fuse all
// squares into their sum. The tables are those of goptim.AdafactorOptions.StepTable.
func Adafactor(groups, threads int64) (n int64, err error) {
	defer enter(&err)()
	return step(groups, threads, 8, func(x []float64, t *goptim.Table) goptim.AdafactorOptions {
		t.FusedNorms = x[7] != 0
		return goptim.AdafactorOptions{
			LR: x[0], Beta2Decay: x[1], Eps: [2]float64{x[2], x[3]}, D: x[4], WeightDecay: x[5], Maximize: x[6] != 0,
		}
	})
}

// HFAdafactor steps a table of its own: see goptim.HFAdafactorOptions.StepTable. fusedNorms is not 0 where torch's norms
// fuse all squares into their sum; onlyCheck, to write nothing.
func HFAdafactor(table, rows, threads int64, lr, eps1, eps2, clipThreshold, decayRate, beta1, weightDecay float64, averages, scaleParameter, relativeStep, warmupInit, fusedNorms, onlyCheck int64) (n int64, err error) {
	defer enter(&err)()
	o := goptim.HFAdafactorOptions{
		LR: lr, Eps: [2]float64{eps1, eps2}, ClipThreshold: clipThreshold, DecayRate: decayRate,
		Averages: averages != 0, Beta1: beta1, WeightDecay: weightDecay,
		ScaleParameter: scaleParameter != 0, RelativeStep: relativeStep != 0, WarmupInit: warmupInit != 0,
		OnlyCheck: onlyCheck != 0,
	}
	t := tableOf(table, rows, threads)
	t.FusedNorms = fusedNorms != 0
	return rows, o.StepTable(t)
}

// Adamax steps groups: lr, beta1, beta2, eps, weight_decay, maximize.
func Adamax(groups, threads int64) (n int64, err error) {
	defer enter(&err)()
	return step(groups, threads, 6, func(x []float64, _ *goptim.Table) goptim.AdamaxOptions {
		return goptim.AdamaxOptions{
			LR: x[0], Betas: [2]float64{x[1], x[2]}, Eps: x[3], WeightDecay: x[4], Maximize: x[5] != 0,
		}
	})
}

// ASGD steps groups: lr, lambd, alpha, t0, weight_decay, maximize, and whether torch's default dtype is float64.
func ASGD(groups, threads int64) (n int64, err error) {
	defer enter(&err)()
	return step(groups, threads, 7, func(x []float64, t *goptim.Table) goptim.ASGDOptions {
		t.Float64 = x[6] != 0
		return goptim.ASGDOptions{
			LR: x[0], Lambd: x[1], Alpha: x[2], T0: x[3], WeightDecay: x[4], Maximize: x[5] != 0,
		}
	})
}

// NAdam steps groups: lr, beta1, beta2, eps, weight_decay, momentum_decay, decoupled_weight_decay, maximize.
func NAdam(groups, threads int64) (n int64, err error) {
	defer enter(&err)()
	return step(groups, threads, 8, func(x []float64, _ *goptim.Table) goptim.NAdamOptions {
		return goptim.NAdamOptions{
			LR: x[0], Betas: [2]float64{x[1], x[2]}, Eps: x[3], WeightDecay: x[4], MomentumDecay: x[5],
			DecoupledWeightDecay: x[6] != 0, Maximize: x[7] != 0,
		}
	})
}

// RAdam steps groups: lr, beta1, beta2, eps, weight_decay, decoupled_weight_decay, maximize.
func RAdam(groups, threads int64) (n int64, err error) {
	defer enter(&err)()
	return step(groups, threads, 7, func(x []float64, _ *goptim.Table) goptim.RAdamOptions {
		return goptim.RAdamOptions{
			LR: x[0], Betas: [2]float64{x[1], x[2]}, Eps: x[3], WeightDecay: x[4],
			DecoupledWeightDecay: x[5] != 0, Maximize: x[6] != 0,
		}
	})
}

// RMSprop steps groups: lr, alpha, eps, weight_decay, momentum, centered, maximize.
func RMSprop(groups, threads int64) (n int64, err error) {
	defer enter(&err)()
	return step(groups, threads, 7, func(x []float64, _ *goptim.Table) goptim.RMSpropOptions {
		return goptim.RMSpropOptions{
			LR: x[0], Alpha: x[1], Eps: x[2], WeightDecay: x[3], Momentum: x[4], Centered: x[5] != 0, Maximize: x[6] != 0,
		}
	})
}

// Rprop steps groups: lr, etaminus, etaplus, the smallest and the largest step size, maximize.
func Rprop(groups, threads int64) (n int64, err error) {
	defer enter(&err)()
	return step(groups, threads, 6, func(x []float64, _ *goptim.Table) goptim.RpropOptions {
		return goptim.RpropOptions{
			LR: x[0], Etas: [2]float64{x[1], x[2]}, StepSizes: [2]float64{x[3], x[4]}, Maximize: x[5] != 0,
		}
	})
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

// MuonMomentum runs the first half of a step: see goptim.MuonOptions.MomentumTable.
func MuonMomentum(table, rows, threads int64, momentum float64, nesterov int64) (n int64, err error) {
	defer enter(&err)()
	o := goptim.MuonOptions{Momentum: momentum, Nesterov: nesterov != 0}
	return rows, o.MomentumTable(tableOf(table, rows, threads))
}

// MuonUpdate runs the second half, on parameters of one shape: see goptim.MuonOptions.UpdateTable. adjustLR is a
// goptim.LRAdjustment.
func MuonUpdate(table, rows, threads, height, width int64, lr, weightDecay float64, adjustLR int64) (n int64, err error) {
	defer enter(&err)()
	o := goptim.MuonOptions{LR: lr, WeightDecay: weightDecay, AdjustLR: goptim.LRAdjustment(adjustLR)}
	return rows, o.UpdateTable(tableOf(table, rows, threads), int(height), int(width))
}

// LBFGS goes on with a goptim.LBFGSMachine of size bytes until it asks for something: see its Resume and goptim.LBFGSAsk.
func LBFGS(machine, size, threads int64) (ask int64, err error) {
	defer enter(&err)()
	a, err := goptim.ResumeLBFGS(uintptr(machine), int(size), int(threads), openmp.Team())
	return int64(a), err
}

// OpenMP has steps run on the threads of OpenMP instead of Go's: parallel and number are the addresses of libgomp's
// GOMP_parallel and omp_get_thread_num; 0 for Go's threads.
func OpenMP(parallel, number int64) (n int64, err error) {
	defer enter(&err)()
	openmp.Use(uintptr(parallel), uintptr(number))
	return parallel, nil
}

// A group is what a step takes of one: a table, and the scalars of its options. The extension and python/goptim/_step.py
// write it.
type group struct {
	next    int64 // the address of the next group; 0 behind the last
	table   int64 // its address
	rows    int64
	count   int64 // of the scalars
	scalars [8]float64
}

// step runs one step over a list of groups. It has options made of each group's scalars, which may set what else a table
// says.
func step[O goptim.TableOptions[O]](groups, threads, scalars int64, options func(x []float64, t *goptim.Table) O) (int64, error) {
	n, rows := 0, int64(0)
	for at := groups; at != 0 || n == 0; n++ {
		if at < 4096 || at%8 != 0 {
			return 0, fmt.Errorf("goptim: group %d is at %#x", n, at)
		}
		g := (*group)(pointer(at))
		if g.count != scalars {
			return 0, fmt.Errorf("goptim: group %d has %d scalars, expected %d", n, g.count, scalars)
		}
		at, rows = g.next, rows+g.rows
	}
	o, t := make([]O, n), make([]goptim.Table, n)
	for i := range t {
		g := (*group)(pointer(groups))
		t[i] = tableOf(g.table, g.rows, threads)
		o[i] = options(g.scalars[:scalars], &t[i])
		groups = g.next
	}
	return rows, goptim.StepTables(o, t)
}

func pointer(address int64) unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Pointer(&address)) }

func tableOf(address, rows, threads int64) goptim.Table {
	return goptim.Table{
		Address: uintptr(address), Rows: int(rows), Threads: int(threads), Team: openmp.Team(), Pow: cmath.Pow,
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
