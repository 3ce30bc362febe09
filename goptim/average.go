package goptim

import (
	"fmt"
	"runtime"
	"slices"
	"unsafe"

	"github.com/goptim/goptim/goptim/internal/engine"
)

// An EMAForm is the form in which torch's users compute an exponential moving average. Forms differ in their rounding.
type EMAForm int

const (
	EMALerp   EMAForm = iota // average + (1-Decay)*(value-average): torch.optim.swa_utils.get_ema_multi_avg_fn
	EMAMulAdd                // Decay*average + (1-Decay)*value: torch.optim.swa_utils.get_ema_avg_fn
)

// EMAOptions are the options of EMA.
type EMAOptions struct {
	Decay float64 `torch:"decay" default:"0.999" range:"[0,1]"` // of the averages
	Form  EMAForm `torch:"-"`
	// Rounding is RoundNearest or, for the form EMALerp, RoundStochastic, with which an average of 16 bits also follows parameters that
	// change little. docs/half.md describes it. The random numbers depend on Seed and Step.
	Rounding Rounding `torch:"-"`
	Seed     uint64   `torch:"-"`
	Step     int      `torch:"-"` // the number of this update, from 1, for RoundStochastic
	Workers  int      `torch:"-"` // maximum number of threads; 0 means GOMAXPROCS
}

// SWAOptions are the options of SWA.
type SWAOptions struct {
	Averaged int `torch:"n_averaged" range:"[0,inf]"` // the number of values of each parameter that the averages contain
	Workers  int `torch:"-"`                          // maximum number of threads; 0 means GOMAXPROCS
}

// PolyakOptions are the options of PolyakUpdate.
type PolyakOptions struct {
	Tau     float64 `torch:"tau" range:"(0,1]"` // weight of the values; required
	Workers int     `torch:"-"`                 // maximum number of threads; 0 means GOMAXPROCS
}

var (
	emaClass    = class[EMAOptions]{name: "EMA"}.described()
	swaClass    = class[SWAOptions]{name: "SWA"}.described()
	polyakClass = class[PolyakOptions]{name: "PolyakUpdate"}.described()
)

// EMA updates the values of averages, the exponential moving averages of the values of params. Each average begins as a copy of its
// parameter. Results are bit-for-bit equal to the function of torch that the form names. If the error wraps ErrOption or ErrParam,
// nothing has changed.
func EMA[T Element](averages, params []*Param[T], o EMAOptions) error {
	emaClass.setDefaults(&o)
	form := require(o.Form == EMALerp || o.Form == EMAMulAdd, emaClass.name, "Form", float64(o.Form), "one of the constants")
	if err := joined(emaClass.checkRanges(&o), form, o.checkRounding(), checkAverages(emaClass.name, averages, params)); err != nil {
		return err
	}
	if o.Form == EMAMulAdd {
		return average(mulAddAverage, mulAddOptions{o.Decay}, averages, params, o.Workers, nil)
	}
	var noise *averageNoise
	if o.Rounding == RoundStochastic && dtype[T]().Narrow() {
		noise = &averageNoise{o.Seed, slices.Repeat([]float64{float64(o.Step) - 1}, len(params))}
	}
	return average(lerpAverage, lerpOptions{1 - o.Decay}, averages, params, o.Workers, noise)
}

func (o *EMAOptions) checkRounding() error {
	switch {
	case o.Rounding == RoundNearest:
		return nil
	case o.Rounding != RoundStochastic:
		return fmt.Errorf("goptim: %s: Rounding is %d, expected RoundNearest or RoundStochastic: %w", emaClass.name, o.Rounding, ErrOption)
	case o.Form != EMALerp:
		return fmt.Errorf("goptim: %s: Rounding is stochastic with the form EMAMulAdd, expected EMALerp: %w", emaClass.name, ErrOption)
	}
	return require(o.Step >= 1, emaClass.name, "Step", float64(o.Step), "at least 1 with RoundStochastic")
}

// An averageNoise is what the random numbers depend on with which averages are rounded.
type averageNoise struct {
	seed  uint64
	steps []float64 // of each average, before the update
}

// SWA updates the values of averages, the means of the values that params have had, as in stochastic weight averaging: Izmailov,
// Podoprikhin, Garipov, Vetrov & Wilson, "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018. Results are
// bit-for-bit equal to the default of torch.optim.swa_utils.AveragedModel, which copies the first values. If the error wraps
// ErrOption or ErrParam, nothing has changed.
func SWA[T Element](averages, params []*Param[T], o SWAOptions) error {
	if err := joined(swaClass.checkRanges(&o), checkAverages(swaClass.name, averages, params)); err != nil {
		return err
	}
	if o.Averaged == 0 {
		return average(copyValues, noOptions{}, averages, params, o.Workers, nil)
	}
	return average(swaAverage, swaOptions{float64(o.Averaged)}, averages, params, o.Workers, nil)
}

// PolyakUpdate moves the values of targets, such as those of a target network in reinforcement learning, towards the values of params:
// target = (1-Tau)*target + Tau*value. Results are bit-for-bit equal to polyak_update of stable-baselines3 with torch. If the error
// wraps ErrOption or ErrParam, nothing has changed.
func PolyakUpdate[T Element](targets, params []*Param[T], o PolyakOptions) error {
	if err := joined(polyakClass.checkRanges(&o), checkAverages(polyakClass.name, targets, params)); err != nil {
		return err
	}
	return average(polyakAverage, polyakOptions{o.Tau}, targets, params, o.Workers, nil)
}

// average applies an elementwise operation to averages and parameters. noise may be nil.
func average[T Element, O, S any](s *spec[O, S], o O, averages, params []*Param[T], workers int, noise *averageNoise) error {
	p := s.take()
	defer s.put(p)
	p.joined = appendValues(p.joined[:0], averages, params)
	seed := uint64(0)
	if noise != nil {
		seed = noise.seed
		for i := range p.joined {
			r := &p.joined[i]
			r.Flags, r.Rows, r.StepType = engine.Stochastic, uint32(i), engine.Float64
			r.Step = engine.Address(unsafe.Pointer(&noise.steps[i]))
		}
	}
	err := p.run(s, o, p.joined, threadsOf(workers), nil, seed)
	runtime.KeepAlive(noise)
	runtime.KeepAlive(averages) // the rows contain addresses
	runtime.KeepAlive(params)
	return err
}

func checkAverages[T Element](name string, averages, params []*Param[T]) error {
	if len(averages) != len(params) {
		return fmt.Errorf("goptim: %s: %d averages, expected %d, one for each parameter: %w", name, len(averages), len(params), ErrParam)
	}
	for i, p := range params {
		a := averages[i]
		switch {
		case p == nil:
			return fmt.Errorf("goptim: %s: parameter %d is nil: %w", name, i, ErrParam)
		case a == nil:
			return fmt.Errorf("goptim: %s: average %d is nil: %w", name, i, ErrParam)
		case len(a.Value) != len(p.Value):
			return fmt.Errorf("goptim: %s: %s: the average has %d elements, expected %d: %w", name, p.describe(i), len(a.Value), len(p.Value), ErrParam)
		case overlap(a.Value, p.Value):
			return fmt.Errorf("goptim: %s: %s: the average shares memory with the value: %w", name, p.describe(i), ErrParam)
		}
	}
	return nil
}
