// Package schedule has learning-rate schedules like those of torch.optim.lr_scheduler:
//
//	rate, err := schedule.WarmupCosine(3e-4, 100, 10_000, 0)
//	if err != nil { … }
//	for step := range 10_000 {
//		opt.LR = rate(step)
//		…
//	}
//
// A schedule is independent of optimizers. Several groups can use several schedules, or multiples of one.
//
// Step, MultiStep, Exponential, Linear, and linear OneCycle are bit-for-bit equal to torch's: like torch, they compute a rate
// from the previous one. Cosine, WarmupCosine and other cycles are closed formulas with cosines of package math instead of
// C's; torch's Cosine is a recursion. Over a thousand steps they are within 1e-14 of the largest rate.
package schedule

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"

	"github.com/goptim/goptim/goptim"
	"github.com/goptim/goptim/goptim/internal/cpow"
)

// A Schedule returns the learning rate of a step. The first step is 0. It may be called for any step and by concurrent goroutines,
// and is fastest for steps in increasing order.
type Schedule func(step int) float64

func require(ok bool, schedule, option string, got any, expected string) error {
	if ok {
		return nil
	}
	return fmt.Errorf("goptim: schedule: %s: %s is %v, expected %s: %w", schedule, option, got, expected, goptim.ErrOption)
}

// requireRate accepts every rate that an optimizer may accept.
func requireRate(schedule, option string, lr float64) error {
	return require(lr >= 0, schedule, option, lr, "at least 0")
}

// recursion is a schedule whose rates are computed from the previous one, for steps 1 to last, and constant afterwards.
func recursion(first float64, last int, next func(step int, lr float64) float64) Schedule {
	var mu sync.Mutex
	at, lr := 0, first
	return func(step int) float64 {
		step = min(max(step, 0), last)
		mu.Lock()
		defer mu.Unlock()
		if step < at {
			at, lr = 0, first
		}
		for at < step {
			at++
			lr = next(at, lr)
		}
		return lr
	}
}

// Step multiplies the rate by gamma every size steps; torch's StepLR. The error wraps goptim.ErrOption.
func Step(lr float64, size int, gamma float64) (Schedule, error) {
	err := errors.Join(
		requireRate("Step", "lr", lr),
		require(size >= 1, "Step", "size", size, "at least 1"),
		require(gamma >= 0, "Step", "gamma", gamma, "at least 0"),
	)
	if err != nil {
		return nil, err
	}
	powers := recursion(lr, math.MaxInt, func(_ int, lr float64) float64 { return lr * gamma })
	return func(step int) float64 { return powers(step / size) }, nil
}

// MultiStep multiplies the rate by gamma at every milestone; torch's MultiStepLR. Milestones may be repeated. The error wraps
// goptim.ErrOption.
func MultiStep(lr float64, milestones []int, gamma float64) (Schedule, error) {
	err := errors.Join(
		requireRate("MultiStep", "lr", lr),
		require(gamma >= 0, "MultiStep", "gamma", gamma, "at least 0"),
	)
	for i, m := range milestones {
		err = errors.Join(err, require(m >= 1, "MultiStep", fmt.Sprintf("milestones[%d]", i), m, "at least 1"))
	}
	if err != nil {
		return nil, err
	}
	sorted := slices.Sorted(slices.Values(milestones))
	var steps []int
	rates := []float64{lr}
	for i := 0; i < len(sorted); {
		times := 1
		for i+times < len(sorted) && sorted[i+times] == sorted[i] {
			times++
		}
		lr *= cpow.Pow(gamma, float64(times))
		steps, rates = append(steps, sorted[i]), append(rates, lr)
		i += times
	}
	return func(step int) float64 {
		i, found := slices.BinarySearch(steps, step)
		if found {
			i++
		}
		return rates[i]
	}, nil
}

// Exponential multiplies the rate by gamma every step; torch's ExponentialLR. The error wraps goptim.ErrOption.
func Exponential(lr, gamma float64) (Schedule, error) {
	err := errors.Join(
		requireRate("Exponential", "lr", lr),
		require(gamma >= 0, "Exponential", "gamma", gamma, "at least 0"),
	)
	if err != nil {
		return nil, err
	}
	return recursion(lr, math.MaxInt, func(_ int, lr float64) float64 { return lr * gamma }), nil
}

// Linear changes the rate from lr*start to lr*end in the given number of steps, and is constant afterwards; torch's LinearLR.
// start is above 0 and at most 1, end between 0 and 1. The error wraps goptim.ErrOption.
func Linear(lr, start, end float64, steps int) (Schedule, error) {
	err := errors.Join(
		requireRate("Linear", "lr", lr),
		require(start > 0 && start <= 1, "Linear", "start", start, "above 0 and at most 1"),
		require(end >= 0 && end <= 1, "Linear", "end", end, "at least 0 and at most 1"),
		require(steps >= 0, "Linear", "steps", steps, "at least 0"),
	)
	if err != nil {
		return nil, err
	}
	return recursion(lr*start, steps, func(step int, lr float64) float64 {
		return lr * (1 + (end-start)/(float64(float64(steps)*start)+float64(float64(step-1)*(end-start))))
	}), nil
}

// Cosine changes the rate from lr to least along half a period of a cosine in the given number of steps, and continues
// periodically; torch's CosineAnnealingLR. See Loshchilov & Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts",
// arXiv:1608.03983. The error wraps goptim.ErrOption.
func Cosine(lr float64, steps int, least float64) (Schedule, error) {
	err := errors.Join(
		requireRate("Cosine", "lr", lr),
		require(steps >= 1, "Cosine", "steps", steps, "at least 1"),
		requireRate("Cosine", "least", least),
	)
	if err != nil {
		return nil, err
	}
	return func(step int) float64 {
		return least + float64((lr-least)*(1+math.Cos(math.Pi*float64(max(step, 0))/float64(steps)))/2)
	}, nil
}

// WarmupCosine changes the rate linearly from lr/warmup to lr in the first warmup steps, then along half a period of a cosine to
// least, and is constant from steps on. It is torch's SequentialLR of a LinearLR with total_iters=warmup-1 and a
// CosineAnnealingLR with T_max=steps-warmup, with the milestone warmup. The error wraps goptim.ErrOption.
func WarmupCosine(lr float64, warmup, steps int, least float64) (Schedule, error) {
	err := errors.Join(
		requireRate("WarmupCosine", "lr", lr),
		require(warmup >= 0, "WarmupCosine", "warmup", warmup, "at least 0"),
		require(steps > warmup, "WarmupCosine", "steps", steps, "above warmup"),
		requireRate("WarmupCosine", "least", least),
	)
	if err != nil {
		return nil, err
	}
	cosine, err := Cosine(lr, steps-warmup, least)
	if err != nil || warmup == 0 {
		return until(steps, cosine), err
	}
	linear, err := Linear(lr, 1/float64(warmup), 1, warmup-1)
	if err != nil {
		return nil, err
	}
	return func(step int) float64 {
		if step < warmup {
			return linear(step)
		}
		return cosine(min(step, steps) - warmup)
	}, nil
}

func until(last int, s Schedule) Schedule {
	return func(step int) float64 { return s(min(step, last)) }
}

// OneCycleOptions are the options of a cycle. A zero stands for torch's default where zero itself is meaningless.
type OneCycleOptions struct {
	PctStart       float64 // share of the steps in which the rate increases, in [0, 1]; 0 is 0.3
	Linear         bool    // linear instead of along cosines
	DivFactor      float64 // largest rate divided by the first one; 0 is 25
	FinalDivFactor float64 // first rate divided by the last one; 0 is 1e4
	ThreePhase     bool    // decrease in as many steps as increase, and then from the first rate to the last
}

// OneCycle increases the rate to most, and decreases it to nearly 0; torch's OneCycleLR, without its cycle of momentum. It is
// constant after the last step. See Smith & Topin, "Super-Convergence", arXiv:1708.07120. The error wraps goptim.ErrOption.
func OneCycle(most float64, steps int, o OneCycleOptions) (Schedule, error) {
	if o.PctStart == 0 {
		o.PctStart = 0.3
	}
	if o.DivFactor == 0 {
		o.DivFactor = 25
	}
	if o.FinalDivFactor == 0 {
		o.FinalDivFactor = 1e4
	}
	err := errors.Join(
		requireRate("OneCycle", "most", most),
		require(steps >= 1, "OneCycle", "steps", steps, "at least 1"),
		require(o.PctStart >= 0 && o.PctStart <= 1, "OneCycle", "PctStart", o.PctStart, "at least 0 and at most 1"),
		require(o.DivFactor > 0, "OneCycle", "DivFactor", o.DivFactor, "above 0"),
		require(o.FinalDivFactor > 0, "OneCycle", "FinalDivFactor", o.FinalDivFactor, "above 0"),
	)
	if err != nil {
		return nil, err
	}
	type phase struct{ end, from, to float64 }
	first := most / o.DivFactor
	last := first / o.FinalDivFactor
	grown, end := o.PctStart*float64(steps), float64(steps-1)
	phases := []phase{{grown - 1, first, most}, {end, most, last}}
	if o.ThreePhase {
		phases = []phase{{grown - 1, first, most}, {float64(2*o.PctStart*float64(steps)) - 2, most, first}, {end, first, last}}
	}
	return func(step int) float64 {
		at, start := float64(min(max(step, 0), steps-1)), 0.0
		for i, p := range phases {
			if at > p.end && i < len(phases)-1 {
				start = p.end
				continue
			}
			share := 1.0
			if p.end != start { // a cycle of one step
				share = (at - start) / (p.end - start)
			}
			if o.Linear {
				return float64((p.to-p.from)*share) + p.from
			}
			return p.to + float64((p.from-p.to)/2*(math.Cos(math.Pi*share)+1))
		}
		return last
	}, nil
}
