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
// Options whose zero has no use (a learning rate, betas, eps) take torch's default when they are zero; all others
// mean what they say. After construction the options are fields of the optimizer, exactly as the next Step uses
// them: a schedule assigns opt.LR.
//
// Distinct optimizers may step at the same time; one optimizer may not. Step allocates nothing after the first
// step that sees a gradient. Results do not depend on the number of threads or the width of the machine's vectors.
//
// Build with GOEXPERIMENT=simd (Go 1.27) for vector code. Without it the package computes the same bits, slower.
package goptim
