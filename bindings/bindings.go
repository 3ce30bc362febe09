// Package bindings is what gopy exports to Python: one function an optimizer, which steps a goptim.Table.
//
// Every function has numbers for arguments and (int64, error) for results: gopy carries these at 0.4 µs a call,
// and an error-only result would leak. Booleans are int64, 0 for false. A panic becomes an error.
package bindings

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/goptim/goptim/bindings/internal/cmath"
	"github.com/goptim/goptim/bindings/internal/openmp"
	"github.com/goptim/goptim/goptim"
)

// Version names the Go release and the width in bits of the vectors that this process uses.
func Version() string { return fmt.Sprintf("%s simd=%d", runtime.Version(), goptim.VectorBits()) }

// SGD steps a table: see goptim.SGDOptions.StepTable.
func SGD(table, rows, threads int64, lr, momentum, dampening, weightDecay float64, nesterov, maximize int64) (n int64, err error) {
	defer enter(&err)()
	o := goptim.SGDOptions{
		LR: lr, Momentum: momentum, Dampening: dampening, WeightDecay: weightDecay,
		Nesterov: nesterov != 0, Maximize: maximize != 0,
	}
	return rows, o.StepTable(tableOf(table, rows, threads))
}

// Adam steps a table: see goptim.AdamOptions.StepTable.
func Adam(table, rows, threads int64, lr, beta1, beta2, eps, weightDecay float64, amsgrad, maximize, decoupledWeightDecay int64) (n int64, err error) {
	defer enter(&err)()
	o := goptim.AdamOptions{
		LR: lr, Betas: [2]float64{beta1, beta2}, Eps: eps, WeightDecay: weightDecay,
		AMSGrad: amsgrad != 0, Maximize: maximize != 0, DecoupledWeightDecay: decoupledWeightDecay != 0,
	}
	return rows, o.StepTable(tableOf(table, rows, threads))
}

// AdamW is Adam with decoupled weight decay.
func AdamW(table, rows, threads int64, lr, beta1, beta2, eps, weightDecay float64, amsgrad, maximize int64) (n int64, err error) {
	return Adam(table, rows, threads, lr, beta1, beta2, eps, weightDecay, amsgrad, maximize, 1)
}

// Adagrad steps a table: see goptim.AdagradOptions.StepTable.
func Adagrad(table, rows, threads int64, lr, lrDecay, weightDecay, eps float64, maximize int64) (n int64, err error) {
	defer enter(&err)()
	o := goptim.AdagradOptions{
		LR: lr, LRDecay: lrDecay, WeightDecay: weightDecay, Eps: eps, Maximize: maximize != 0,
	}
	return rows, o.StepTable(tableOf(table, rows, threads))
}

// Adadelta steps a table: see goptim.AdadeltaOptions.StepTable.
func Adadelta(table, rows, threads int64, lr, rho, eps, weightDecay float64, maximize int64) (n int64, err error) {
	defer enter(&err)()
	o := goptim.AdadeltaOptions{
		LR: lr, Rho: rho, Eps: eps, WeightDecay: weightDecay, Maximize: maximize != 0,
	}
	return rows, o.StepTable(tableOf(table, rows, threads))
}

// Adafactor steps a table: see goptim.AdafactorOptions.StepTable. fusedNorms is not 0 where torch's norms fuse all
// squares into their sum.
func Adafactor(table, rows, threads int64, lr, beta2Decay, eps1, eps2, d, weightDecay float64, maximize, fusedNorms int64) (n int64, err error) {
	defer enter(&err)()
	o := goptim.AdafactorOptions{
		LR: lr, Beta2Decay: beta2Decay, Eps: [2]float64{eps1, eps2}, D: d, WeightDecay: weightDecay, Maximize: maximize != 0,
	}
	t := tableOf(table, rows, threads)
	t.FusedNorms = fusedNorms != 0
	return rows, o.StepTable(t)
}

// HFAdafactor steps a table of its own: see goptim.HFAdafactorOptions.StepTable. fusedNorms is as Adafactor's.
func HFAdafactor(table, rows, threads int64, lr, eps1, eps2, clipThreshold, decayRate, beta1, weightDecay float64, averages, scaleParameter, relativeStep, warmupInit, fusedNorms int64) (n int64, err error) {
	defer enter(&err)()
	o := goptim.HFAdafactorOptions{
		LR: lr, Eps: [2]float64{eps1, eps2}, ClipThreshold: clipThreshold, DecayRate: decayRate,
		Averages: averages != 0, Beta1: beta1, WeightDecay: weightDecay,
		ScaleParameter: scaleParameter != 0, RelativeStep: relativeStep != 0, WarmupInit: warmupInit != 0,
	}
	t := tableOf(table, rows, threads)
	t.FusedNorms = fusedNorms != 0
	return rows, o.StepTable(t)
}

// Adamax steps a table: see goptim.AdamaxOptions.StepTable.
func Adamax(table, rows, threads int64, lr, beta1, beta2, eps, weightDecay float64, maximize int64) (n int64, err error) {
	defer enter(&err)()
	o := goptim.AdamaxOptions{
		LR: lr, Betas: [2]float64{beta1, beta2}, Eps: eps, WeightDecay: weightDecay, Maximize: maximize != 0,
	}
	return rows, o.StepTable(tableOf(table, rows, threads))
}

// ASGD steps a table: see goptim.ASGDOptions.StepTable. float64Default is not 0 if torch's default dtype is float64.
func ASGD(table, rows, threads int64, lr, lambd, alpha, t0, weightDecay float64, maximize, float64Default int64) (n int64, err error) {
	defer enter(&err)()
	o := goptim.ASGDOptions{
		LR: lr, Lambd: lambd, Alpha: alpha, T0: t0, WeightDecay: weightDecay, Maximize: maximize != 0,
	}
	t := tableOf(table, rows, threads)
	t.Float64 = float64Default != 0
	return rows, o.StepTable(t)
}

// NAdam steps a table: see goptim.NAdamOptions.StepTable.
func NAdam(table, rows, threads int64, lr, beta1, beta2, eps, weightDecay, momentumDecay float64, decoupledWeightDecay, maximize int64) (n int64, err error) {
	defer enter(&err)()
	o := goptim.NAdamOptions{
		LR: lr, Betas: [2]float64{beta1, beta2}, Eps: eps, WeightDecay: weightDecay, MomentumDecay: momentumDecay,
		DecoupledWeightDecay: decoupledWeightDecay != 0, Maximize: maximize != 0,
	}
	return rows, o.StepTable(tableOf(table, rows, threads))
}

// RAdam steps a table: see goptim.RAdamOptions.StepTable.
func RAdam(table, rows, threads int64, lr, beta1, beta2, eps, weightDecay float64, decoupledWeightDecay, maximize int64) (n int64, err error) {
	defer enter(&err)()
	o := goptim.RAdamOptions{
		LR: lr, Betas: [2]float64{beta1, beta2}, Eps: eps, WeightDecay: weightDecay,
		DecoupledWeightDecay: decoupledWeightDecay != 0, Maximize: maximize != 0,
	}
	return rows, o.StepTable(tableOf(table, rows, threads))
}

// RMSprop steps a table: see goptim.RMSpropOptions.StepTable.
func RMSprop(table, rows, threads int64, lr, alpha, eps, weightDecay, momentum float64, centered, maximize int64) (n int64, err error) {
	defer enter(&err)()
	o := goptim.RMSpropOptions{
		LR: lr, Alpha: alpha, Eps: eps, WeightDecay: weightDecay, Momentum: momentum,
		Centered: centered != 0, Maximize: maximize != 0,
	}
	return rows, o.StepTable(tableOf(table, rows, threads))
}

// Rprop steps a table: see goptim.RpropOptions.StepTable.
func Rprop(table, rows, threads int64, lr, etaMinus, etaPlus, minStep, maxStep float64, maximize int64) (n int64, err error) {
	defer enter(&err)()
	o := goptim.RpropOptions{
		LR: lr, Etas: [2]float64{etaMinus, etaPlus}, StepSizes: [2]float64{minStep, maxStep}, Maximize: maximize != 0,
	}
	return rows, o.StepTable(tableOf(table, rows, threads))
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
	}
}
