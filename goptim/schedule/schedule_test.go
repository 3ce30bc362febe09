package schedule_test

import (
	"encoding/json"
	"fmt"
	"log"
	"math"
	"os"
	"strconv"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/goptim/goptim/goptim"
	"github.com/goptim/goptim/goptim/schedule"
)

func ExampleWarmupCosine() {
	v := &goptim.Param[float64]{Value: []float64{5}, Grad: make([]float64, 1)}
	opt, err := goptim.NewSGD([]*goptim.Param[float64]{v}, goptim.SGDOptions{})
	if err != nil {
		log.Fatal(err)
	}
	rate, err := schedule.WarmupCosine(0.5, 2, 8, 0)
	if err != nil {
		log.Fatal(err)
	}
	for step := range 8 {
		opt.LR = rate(step)
		v.Grad[0] = v.Value[0]
		if err := opt.Step(); err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%.2f ", opt.LR)
	}
	fmt.Printf("→ %.2f\n", v.Value[0])
	// Output: 0.25 0.50 0.50 0.47 0.38 0.25 0.13 0.03 → 0.20
}

func ExampleOneCycle() {
	rate, err := schedule.OneCycle(1, 5, schedule.OneCycleOptions{PctStart: 0.6, Linear: true, DivFactor: 10, FinalDivFactor: 10})
	if err != nil {
		log.Fatal(err)
	}
	for step := range 5 {
		fmt.Printf("%.2f ", rate(step))
	}
	// Output: 0.10 0.55 1.00 0.51 0.01
}

// A golden has the rates of a schedule of torch, from tests/golden.py.
type golden struct {
	Schedule string
	LR       float64
	Ints     []int
	Floats   []float64
	Options  schedule.OneCycleOptions
	Exact    bool
	Bits     []string // the rate of every step
}

func build(g golden) (schedule.Schedule, error) {
	switch g.Schedule {
	case "Step":
		return schedule.Step(g.LR, g.Ints[0], g.Floats[0])
	case "MultiStep":
		return schedule.MultiStep(g.LR, g.Ints, g.Floats[0])
	case "Exponential":
		return schedule.Exponential(g.LR, g.Floats[0])
	case "Linear":
		return schedule.Linear(g.LR, g.Floats[0], g.Floats[1], g.Ints[0])
	case "Cosine":
		return schedule.Cosine(g.LR, g.Ints[0], g.Floats[0])
	case "WarmupCosine":
		return schedule.WarmupCosine(g.LR, g.Ints[0], g.Ints[1], g.Floats[0])
	case "OneCycle":
		return schedule.OneCycle(g.LR, g.Ints[0], g.Options)
	}
	return nil, fmt.Errorf("no schedule %s", g.Schedule)
}

func TestGolden(t *testing.T) {
	text, err := os.ReadFile("testdata/golden.json")
	require.NoError(t, err)
	var all []golden
	require.NoError(t, json.Unmarshal(text, &all))
	require.NotEmpty(t, all)
	for _, g := range all {
		rate, err := build(g)
		require.NoError(t, err)
		worst, forward := 0., make([]float64, len(g.Bits))
		for step, digits := range g.Bits {
			bits, err := strconv.ParseUint(digits, 16, 64)
			require.NoError(t, err)
			want, got := math.Float64frombits(bits), rate(step)
			forward[step] = got
			if g.Exact {
				require.Equal(t, want, got, "%v: step %d", g.Schedule, step)
			}
			worst = max(worst, math.Abs(want-got)/g.LR)
		}
		t.Logf("%s %v %v: off by %.1e of the largest rate in %d steps", g.Schedule, g.Ints, g.Floats, worst, len(g.Bits))
		require.LessOrEqual(t, worst, 1e-14)

		for step := len(forward) - 1; step >= 0; step -= 1 + step/7 {
			require.Equal(t, forward[step], rate(step), "backward")
		}
		var group sync.WaitGroup
		for range 3 {
			group.Go(func() {
				for step, x := range forward {
					assert.Equal(t, x, rate(step), "at the same time")
				}
			})
		}
		group.Wait()
		assert.Equal(t, rate(0), rate(-1))
		assert.Zero(t, testing.AllocsPerRun(10, func() { rate(3) }))
	}
}

func TestRefuses(t *testing.T) {
	nan := math.NaN()
	for says, g := range map[string]golden{
		"Step: size is 0":                                          {Schedule: "Step", Ints: []int{0}, Floats: []float64{1}},
		"Step: lr is NaN":                                          {Schedule: "Step", LR: nan, Ints: []int{1}, Floats: []float64{1}},
		"Step: gamma is -1":                                        {Schedule: "Step", Ints: []int{1}, Floats: []float64{-1}},
		"MultiStep: milestones[1] is 0":                            {Schedule: "MultiStep", Ints: []int{3, 0}, Floats: []float64{1}},
		"Exponential: gamma is NaN":                                {Schedule: "Exponential", Floats: []float64{nan}},
		"Linear: start is 0, expected above 0 and":                 {Schedule: "Linear", Ints: []int{1}, Floats: []float64{0, 1}},
		"Linear: end is 2":                                         {Schedule: "Linear", Ints: []int{1}, Floats: []float64{1, 2}},
		"Linear: steps is -1":                                      {Schedule: "Linear", Ints: []int{-1}, Floats: []float64{1, 1}},
		"Cosine: steps is 0":                                       {Schedule: "Cosine", Ints: []int{0}, Floats: []float64{0}},
		"Cosine: least is -1":                                      {Schedule: "Cosine", Ints: []int{1}, Floats: []float64{-1}},
		"WarmupCosine: steps is 3, expected above warmup":          {Schedule: "WarmupCosine", Ints: []int{3, 3}, Floats: []float64{0}},
		"WarmupCosine: warmup is -1":                               {Schedule: "WarmupCosine", Ints: []int{-1, 3}, Floats: []float64{0}},
		"OneCycle: steps is 0":                                     {Schedule: "OneCycle", Ints: []int{0}},
		"OneCycle: PctStart is 1.5, expected at least 0 and at mo": {Schedule: "OneCycle", Ints: []int{1}, Options: schedule.OneCycleOptions{PctStart: 1.5}},
	} {
		_, err := build(g)
		require.ErrorIs(t, err, goptim.ErrOption)
		require.ErrorContains(t, err, says)
	}
	for _, o := range []schedule.OneCycleOptions{{}, {ThreePhase: true}, {PctStart: 1}} {
		rate, err := schedule.OneCycle(1, 1, o)
		require.NoError(t, err)
		assert.False(t, math.IsNaN(rate(0)), "a cycle of one step")
	}
}

// TestEnds calls schedules for steps after their last one.
func TestEnds(t *testing.T) {
	rate, err := schedule.MultiStep(1, []int{math.MaxInt, math.MaxInt, 3}, .5)
	require.NoError(t, err)
	assert.Equal(t, []float64{1, .5, .5, .125}, []float64{rate(2), rate(3), rate(math.MaxInt - 1), rate(math.MaxInt)})
	for _, warmup := range []int{0, 2} {
		rate, err := schedule.WarmupCosine(1, warmup, 8, .1)
		require.NoError(t, err)
		assert.Equal(t, []float64{.1, .1, .1}, []float64{rate(8), rate(9), rate(100)}, "it stays there")
	}
}
