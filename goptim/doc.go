// Package goptim provides the optimizers of PyTorch's torch.optim, with bit-for-bit equal results. A step is one
// vectorized, multi-threaded pass over memory.
//
// An optimizer is constructed with parameters and options. Step applies the gradients that the program has stored in the
// parameters:
//
//	w := &goptim.Param[float32]{Name: "w", Value: weights, Grad: make([]float32, len(weights))}
//	opt, err := goptim.NewAdamW([]*goptim.Param[float32]{w}, goptim.AdamOptions{LR: 3e-4, WeightDecay: 0.01})
//	if err != nil { … }
//	for range steps {
//		backward(w.Value, w.Grad)
//		if err := opt.Step(); err != nil { … }
//	}
//
// # Optimizers
//
//   - elementwise: [NewSGD], [NewAdam], [NewAdamW], and every other one that is not in this list
//   - for matrices, given by the Shape of a Param: [NewAdafactor], [NewMuon]
//   - for sparse gradients, such as those of an embedding: [NewSparseAdam], [NewSparseAdagrad], [NewSparseSGD]
//   - evaluating a closure: [NewLBFGS]
//   - around another optimizer: [NewLookahead], [NewSAM]
//
// Results are bit-for-bit equal to torch's, except those of LBFGS and Muon, which sum long products in a different order.
// Package gonumopt provides the optimizers as methods of gonum's optimize.Minimize.
//
// # Types of elements
//
// Optimizers and operations on lists of tensors, such as [ClipGradNorm], support float32, float64, [BFloat16] and [Float16]. The states
// have the type of the parameter, as in torch, except those of LBFGS, which are float32 for 16 bits. The arithmetic on 16 bits is in
// float32, and each element that a step stores is rounded once: see [Element]. The fields of [Storage] change what is stored: states of
// another type, a float32 copy of the parameter, or another rounding.
//
// # Options
//
// The tags of an option are its name in torch, the default with which New replaces zero, and its range. Options for which
// zero is not useful (a learning rate, betas, eps) have torch's default. All others keep zero. For example, torch's weight
// decay of 0.01 in AdamW must be set explicitly. A pair is replaced by its default if both elements are zero. After
// construction, the options are fields of the optimizer, and the next Step uses them as they are: a schedule assigns
// opt.LR, and zero is then zero. Package schedule provides torch's learning-rate schedules.
//
// Each set of parameters with different options (torch's parameter groups) is a separate optimizer. [NewGroups] combines
// them.
//
// # Around a step
//
// [GradNorm], [ClipGradNorm] and [ClipGradValue] are torch's functions on the gradients of a list of parameters. [EMA], [SWA]
// and [PolyakUpdate] update averages of parameters and target networks. Each has the exact results of torch's function that its
// documentation names, and does not allocate. They support 16-bit types, whose norms torch rounds to 16 bits; with the option Widen
// they are computed in float32.
//
// # Errors
//
// Bad input is an error and never a panic. The error wraps [ErrOption] or [ErrParam], names the option or the parameter,
// and is returned before anything is changed; for Groups, in any group. Check returns the same error without a step.
//
// # State
//
// Each optimizer implements encoding.BinaryMarshaler and BinaryUnmarshaler for its options and state, with a version and a
// checksum. [WriteState] and [ReadState] exchange them with Python as safetensors files. A program that also restores its
// parameters continues with exactly the same results.
//
// # Speed
//
// Build with GOEXPERIMENT=simd (Go 1.27) for vector code. Without it the results are the same but slower, as on
// WebAssembly, whose vectors do not have a fused multiply-add. From half a million elements, Step uses up to Workers
// threads, by default GOMAXPROCS. It does not allocate after each parameter has had a gradient; LBFGS does not after its
// history is full. Results do not depend on the number of threads or the vector width. Different optimizers may step
// concurrently; one optimizer may not.
package goptim
