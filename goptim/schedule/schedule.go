// Package schedule holds learning rates that depend on the number of the step, as torch.optim.lr_scheduler has them:
//
//	rate, err := schedule.WarmupCosine(3e-4, 100, 10_000, 0)
//	if err != nil { … }
//	for step := range 10_000 {
//		opt.LR = rate(step)
//		…
//	}
//
// A schedule knows nothing of optimizers: the rates of several groups are several schedules, or multiples of one.
//
// Step, MultiStep, Exponential, Linear, and OneCycle if it is linear, have torch's bits: torch computes a rate from the one
// before, and so do they. Cosine, WarmupCosine and other cycles are closed formulas, and take cosines from package math,
// not from C; torch's Cosine goes by a recursion. Over a thousand steps they are within 1e-14 of the largest rate.
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

// A Schedule gives the learning rate of a step, the first of which is 0. It may be called for any step, by any number of
// goroutines, and is quickest for steps in their order.
type Schedule func(step int) float64

func require(ok bool, schedule, option string, got any, expected string) error {
	if ok {
		return nil
	}
	return fmt.Errorf("goptim: schedule: %s: %s is %v, expected %s: %w", schedule, option, got, expected, goptim.ErrOption)
}

// requireRate takes any rate that an optimizer may take.
func requireRate(schedule, option string, lr float64) error {
	return require(lr >= 0, schedule, option, lr, "at least 0")
}

// recursion is a schedule whose rates are computed from the one before, from 1 to last; they stay what they are then.
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

// MultiStep multiplies the rate by gamma at every milestone; torch's MultiStepLR. A milestone may come more than once.
// The error wraps goptim.ErrOption.
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

// Linear goes from lr*start to lr*end within some steps, and stays there; torch's LinearLR. start is above 0 and at most
// 1, end between 0 and 1. The error wraps goptim.ErrOption.
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

// Cosine goes from lr to least along half a cosine of some steps, and back and on in the same way; torch's
// CosineAnnealingLR. See Loshchilov & Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", arXiv:1608.03983.
// The error wraps goptim.ErrOption.
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

// WarmupCosine goes linearly from lr/warmup to lr in the first warmup steps, then along half a cosine to least, where it
// stays from steps on. It is torch's SequentialLR of a LinearLR, whose total_iters are warmup-1, and a CosineAnnealingLR,
// whose T_max is steps-warmup, with the milestone warmup. The error wraps goptim.ErrOption.
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

// OneCycleOptions shape a cycle. Those whose zero has no use take torch's default when they are zero.
type OneCycleOptions struct {
	PctStart       float64 // the share of the steps in which the rate grows, in [0, 1]; 0 is 0.3
	Linear         bool    // along lines instead of cosines
	DivFactor      float64 // the first rate is the largest divided by it; 0 is 25
	FinalDivFactor float64 // the last rate is the first divided by it; 0 is 1e4
	ThreePhase     bool    // go down as long as up, and then from the first rate to the last
}

// OneCycle goes up to most, and down to almost nothing; torch's OneCycleLR, without its cycle of momentum. It stays at its
// last rate. See Smith & Topin, "Super-Convergence", arXiv:1708.07120. The error wraps goptim.ErrOption.
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
