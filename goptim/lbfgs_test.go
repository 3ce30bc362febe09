package goptim_test

import (
	"errors"
	"fmt"
	"log"
	"math"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/goptim/goptim/goptim"
	"github.com/goptim/goptim/internal/steps"
)

// rosenbrock is (1-x)² + 100(y-x²)² at v, and puts the gradient beside it.
func rosenbrock(v *goptim.Param[float64]) (float64, error) {
	x, y := v.Value[0], v.Value[1]
	rosenbrockGrad(v.Value, v.Grad)
	return (1-x)*(1-x) + 100*(y-x*x)*(y-x*x), nil
}

func ExampleNewLBFGS() {
	v := &goptim.Param[float64]{Name: "v", Value: []float64{-1.5, 2}, Grad: make([]float64, 2)}
	opt, err := goptim.NewLBFGS([]*goptim.Param[float64]{v}, goptim.LBFGSOptions{StrongWolfe: true, MaxIter: 100})
	if err != nil {
		log.Fatal(err)
	}
	if _, err := opt.Step(func() (float64, error) { return rosenbrock(v) }); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%.4f\n", v.Value)
	// Output: [1.0000 1.0000]
}

// valley is a long one: its gradient is (curvature)·(x-1).
func valley[T goptim.Float](params []*goptim.Param[T]) (loss float64, err error) {
	for _, p := range params {
		for i, x := range p.Value {
			c := 1 + float64(i%97)
			loss += 0.5 * c * float64(x-1) * float64(x-1)
			p.Grad[i] = T(c) * (x - 1)
		}
	}
	return loss, nil
}

func valleyParams[T goptim.Float](sizes ...int) (params []*goptim.Param[T]) {
	for k, n := range sizes {
		p := &goptim.Param[T]{Value: make([]T, n), Grad: make([]T, n)}
		for i := range p.Value {
			p.Value[i] = T(math.Sin(float64(k + 3*i)))
		}
		params = append(params, p)
	}
	return params
}

func TestLBFGSConverges(t *testing.T) {
	for _, o := range []goptim.LBFGSOptions{{StrongWolfe: true}, {LR: 0.5}, {StrongWolfe: true, HistorySize: 1, MaxIter: 200}, {Maximize: true, StrongWolfe: true}} {
		params := valleyParams[float64](1000, 0, 1, 9000)
		opt, err := goptim.NewLBFGS(params, o)
		require.NoError(t, err)
		for range 10 {
			_, err := opt.Step(func() (float64, error) {
				loss, err := valley(params)
				if o.Maximize {
					for _, p := range params {
						for i := range p.Grad {
							p.Grad[i] *= -1
						}
					}
					loss = -loss
				}
				return loss, err
			})
			require.NoError(t, err)
		}
		loss, _ := valley(params)
		assert.Less(t, loss, 1e-8, "%+v", o)
		assert.Positive(t, opt.Iterations())
		assert.Greater(t, opt.Evaluations(), opt.Iterations()/2)
	}
}

func TestLBFGSOnAnyNumberOfThreads(t *testing.T) {
	if testing.Short() {
		t.Skip("does not depend on the width of vectors")
	}
	t.Run("float32", testLBFGSThreads[float32])
	t.Run("float64", testLBFGSThreads[float64])
}

func testLBFGSThreads[T goptim.Float](t *testing.T) {
	var first [][]T
	for _, workers := range []int{1, 2, 3, 7} {
		params := valleyParams[T](1<<19, 77_777)
		opt, err := goptim.NewLBFGS(params, goptim.LBFGSOptions{StrongWolfe: true, MaxIter: 6, HistorySize: 3})
		require.NoError(t, err)
		opt.Workers = workers
		for range 2 {
			_, err := opt.Step(func() (float64, error) { return valley(params) })
			require.NoError(t, err)
		}
		values := [][]T{params[0].Value, params[1].Value}
		if first == nil {
			first = values
		}
		require.Equal(t, first, values, "%d threads", workers)
	}
}

func TestLBFGSAllocatesItsHistoryAlone(t *testing.T) {
	params := valleyParams[float64](500, 30)
	opt, err := goptim.NewLBFGS(params, goptim.LBFGSOptions{
		LR: 1e-3, HistorySize: 3, MaxIter: 5, ToleranceGrad: -1, ToleranceChange: -1,
	})
	require.NoError(t, err)
	closure := func() (float64, error) { return valley(params) }
	step := func() {
		if _, err := opt.Step(closure); err != nil {
			t.Fatal(err)
		}
	}
	step()
	step()
	if allocations := testing.AllocsPerRun(10, step); !goptim.Detector {
		assert.Zero(t, allocations)
	}
}

func TestLBFGSGoesOnAfterAnErrorOfTheClosure(t *testing.T) {
	v := &goptim.Param[float64]{Value: []float64{-1.5, 2}, Grad: make([]float64, 2)}
	opt, err := goptim.NewLBFGS([]*goptim.Param[float64]{v}, goptim.LBFGSOptions{StrongWolfe: true})
	require.NoError(t, err)
	stop := errors.New("stop")
	for fail := range 6 {
		calls := 0
		_, err := opt.Step(func() (float64, error) {
			if calls++; calls == fail+1 {
				return 0, stop
			}
			return rosenbrock(v)
		})
		require.ErrorIs(t, err, stop)
	}
	for range 5 {
		_, err = opt.Step(func() (float64, error) { return rosenbrock(v) })
		require.NoError(t, err)
	}
	assert.InDeltaSlice(t, []float64{1, 1}, v.Value, 1e-4)
}

func TestLBFGSRefuses(t *testing.T) {
	p := &goptim.Param[float32]{Name: "w", Value: make([]float32, 3), Grad: make([]float32, 3)}
	params := []*goptim.Param[float32]{p}
	for says, o := range map[string]goptim.LBFGSOptions{
		"LR is -1":          {LR: -1},
		"LR is NaN":         {LR: math.NaN()},
		"MaxIter is -1":     {MaxIter: -1},
		"MaxEval is -2":     {MaxEval: -2},
		"HistorySize is -3": {HistorySize: -3},
	} {
		_, err := goptim.NewLBFGS(params, o)
		require.ErrorIs(t, err, goptim.ErrOption)
		require.ErrorContains(t, err, says)
	}
	_, err := goptim.NewLBFGS[float32](nil, goptim.LBFGSOptions{})
	require.ErrorIs(t, err, goptim.ErrParam)
	opt, err := goptim.NewLBFGS(params, goptim.LBFGSOptions{StrongWolfe: true})
	require.NoError(t, err)
	_, err = opt.Step(nil)
	require.ErrorIs(t, err, goptim.ErrOption)
	_, err = opt.Step(func() (float64, error) { p.Grad = p.Grad[:2]; return 1, nil })
	require.ErrorContains(t, err, "parameter 0 (w): the gradient has 2 elements, expected 3")
	require.ErrorIs(t, err, goptim.ErrParam)
	p.Grad = []float32{1, 2, 3}
	_, err = opt.Step(func() (float64, error) { return math.NaN(), nil })
	require.NoError(t, err)
	calls := 0
	_, err = opt.Step(func() (float64, error) {
		if calls++; calls > 1 {
			clear(p.Grad)
			return math.NaN(), nil
		}
		p.Grad = []float32{1, 2, 3}
		return 1, nil
	})
	require.ErrorIs(t, err, goptim.ErrLineSearch)
	_, err = steps.ResumeLBFGS(4096, 8, 1, nil)
	require.ErrorIs(t, err, goptim.ErrParam)
	require.ErrorContains(t, err, "goptim: LBFGS: a machine of 8 bytes at 0x1000")
}
