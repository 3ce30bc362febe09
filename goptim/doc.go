// Package goptim holds the optimizers of PyTorch's torch.optim: the same update, rounded the same way in every bit,
// as one vectorised, multi-core pass over memory.
//
// An optimizer is made of parameters and options, and Step applies the gradients that the program has put beside
// the values:
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
//   - first-order, of every element by itself: [NewSGD], [NewAdam], [NewAdamW], [NewAMSGrad], [NewNAdam], [NewRAdam],
//     [NewAdamax], [NewAdagrad], [NewAdadelta], [NewRMSprop], [NewRprop], [NewASGD]
//   - of matrices, by the Shape of a Param: [NewAdafactor], [NewMuon]
//   - of the rows that have a gradient, as an embedding's: [NewSparseAdam], [NewSparseAdagrad], [NewSparseSGD]
//   - of a function that it evaluates itself: [NewLBFGS]
//
// All have torch's bits but LBFGS and Muon, which sum long products in an order of their own. Package gonumopt makes
// them methods of gonum's optimize.Minimize.
//
// # Options
//
// The tags of an option are its name in torch, the default that New takes for zero, and its range. Options whose zero has
// no use (a learning rate, betas, eps) have a default, which is torch's; all others mean what they say, so that torch's
// weight decay of 0.01 in AdamW is to be written down. A pair takes its default if both are zero. After construction the options
// are fields of the optimizer, exactly as the next Step uses them: a schedule assigns opt.LR, and zero is then zero.
// Package schedule has torch's learning rates.
//
// Sets of parameters with other options, torch's parameter groups, are optimizers of their own, which [NewGroups] makes one.
//
// # Errors
//
// Bad input is an error and never a panic. It wraps [ErrOption] or [ErrParam], names the option or the parameter, and
// comes before anything is changed: of any of the groups, for Groups. Check gives the same without a step.
//
// # State
//
// Every optimizer is an encoding.BinaryMarshaler and BinaryUnmarshaler of its options and state, with a version and a
// checksum; [WriteState] and [ReadState] share them with Python as safetensors files. A program that has also kept its
// parameters goes on with the same bits.
//
// # Speed
//
// Build with GOEXPERIMENT=simd (Go 1.27) for vector code. Without it the package computes the same bits, slower; and so
// it does for WebAssembly, whose vectors have no fused multiplication. Step uses as many threads as Workers, by
// default GOMAXPROCS, from half a million elements on, and allocates nothing once every parameter has had a gradient;
// LBFGS, once its history is full. Results do not depend on the number of threads or the width of the machine's
// vectors. Distinct optimizers may step at the same time; one optimizer may not.
package goptim
