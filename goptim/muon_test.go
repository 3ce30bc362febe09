package goptim_test

import (
	"fmt"
	"log"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gonum.org/v1/gonum/mat"

	"github.com/goptim/goptim/goptim"
)

func ExampleNewMuon() {
	// Muon makes all singular values of the update nearly equal to 1.
	w := &goptim.Param[float32]{Name: "w", Value: make([]float32, 6), Shape: []int{2, 3}}
	opt, err := goptim.NewMuon([]*goptim.Param[float32]{w}, goptim.MuonOptions{LR: 1})
	if err != nil {
		log.Fatal(err)
	}
	w.Grad = []float32{-100, 0, 0, 0, 50, 0}
	if err := opt.Step(); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%.1f\n", w.Value)
	// Output: [0.7 0.0 0.0 0.0 -1.1 0.0]
}

// orthogonalized computes in float64, with a different method, the matrix that Newton-Schulz approximates in bfloat16:
// UDVᵀ, where UΣVᵀ is the matrix and D is Σ/‖Σ‖ after the given number of steps of the polynomial.
func orthogonalized(t *testing.T, x *mat.Dense, o goptim.MuonOptions) *mat.Dense {
	var svd mat.SVD
	require.True(t, svd.Factorize(x, mat.SVDThin))
	var u, v, product mat.Dense
	svd.UTo(&u)
	svd.VTo(&v)
	values, norm := svd.Values(nil), max(mat.Norm(x, 2), o.Eps)
	a, b, c := o.NSCoefficients[0], o.NSCoefficients[1], o.NSCoefficients[2]
	for i := range values {
		s := values[i] / norm
		for range o.NSSteps {
			s = a*s + b*s*s*s + c*s*s*s*s*s
		}
		values[i] = s
	}
	product.Product(&u, mat.NewDiagDense(len(values), values), v.T())
	return &product
}

var muon = goptim.MuonOptions{
	LR: 1, WeightDecay: .25, Momentum: .75, Eps: 1e-7, NSCoefficients: [3]float64{3.4445, -4.7750, 2.0315}, NSSteps: 5,
}

func TestMuon(t *testing.T) {
	t.Run("float32", testMuon[float32])
	t.Run("float64", testMuon[float64])
}

func testMuon[T goptim.Float](t *testing.T) {
	for _, shape := range [][2]int{{1, 1}, {1, 9}, {9, 1}, {7, 7}, {16, 64}, {65, 33}, {100, 260}, {257, 130}} {
		for workers := 1; workers <= 2; workers++ {
			testMuonOf[T](t, shape[0], shape[1], workers)
		}
	}
}

func testMuonOf[T goptim.Float](t *testing.T, rows, cols, workers int) {
	r := rand.New(rand.NewPCG(1, uint64(rows)))
	n := rows * cols
	p := &goptim.Param[T]{Name: "w", Value: make([]T, n), Shape: []int{rows, cols}, Grad: make([]T, n)}
	for i := range p.Value {
		p.Value[i] = T(r.NormFloat64())
	}
	o := muon
	o.Nesterov = workers == 2
	opt, err := goptim.NewMuon([]*goptim.Param[T]{p}, o)
	require.NoError(t, err)
	opt.Workers = workers
	momentum := mat.NewDense(rows, cols, nil)
	for range 3 {
		before, grad := mat.NewDense(rows, cols, nil), mat.NewDense(rows, cols, nil)
		for i := range n {
			p.Grad[i] = T(r.NormFloat64())
			before.Set(i/cols, i%cols, float64(p.Value[i]))
			grad.Set(i/cols, i%cols, float64(p.Grad[i]))
		}
		require.NoError(t, opt.Step())
		lerp := func(x, end *mat.Dense, w float64) *mat.Dense {
			var y mat.Dense
			y.Sub(end, x)
			y.Scale(w, &y)
			y.Add(&y, x)
			return &y
		}
		momentum = lerp(momentum, grad, 1-o.Momentum)
		update := momentum
		if o.Nesterov {
			update = lerp(grad, momentum, o.Momentum)
		}
		expected := orthogonalized(t, update, o)
		step := mat.NewDense(rows, cols, nil) // computed from the change of the parameter
		for i := range n {
			x := before.At(i/cols, i%cols)*(1-o.LR*o.WeightDecay) - float64(p.Value[i])
			step.Set(i/cols, i%cols, x/(o.LR*math.Sqrt(max(1, float64(rows)/float64(cols)))))
		}
		step.Sub(step, expected)
		off := mat.Norm(step, 2) / mat.Norm(expected, 2)
		t.Logf("%d x %d: off by %.4f of its norm", rows, cols, off)
		require.Less(t, off, .05, "%d x %d", rows, cols)
	}
}

func TestMuonAdjustsTheLearningRate(t *testing.T) {
	moved := map[goptim.LRAdjustment]float64{}
	for adjust := goptim.AdjustOriginal; adjust <= goptim.AdjustNone; adjust++ {
		p := &goptim.Param[float64]{Value: make([]float64, 8), Shape: []int{2, 4}, Grad: []float64{1, 0, 2, 0, 0, 3, 0, 4}}
		o := muon
		o.AdjustLR = adjust
		opt, err := goptim.NewMuon([]*goptim.Param[float64]{p}, o)
		require.NoError(t, err)
		require.NoError(t, opt.Step())
		moved[adjust] = p.Value[0]
	}
	one := moved[goptim.AdjustNone]
	assert.InEpsilon(t, one, moved[goptim.AdjustOriginal], 1e-12)
	assert.InEpsilon(t, one*.4, moved[goptim.AdjustMatchRMSAdamW], 1e-12)
	assert.InEpsilon(t, one*math.Sqrt(.5), moved[goptim.AdjustSpectralUnclamped], 1e-12)
}

func TestMuonDoesNotAllocate(t *testing.T) {
	p := &goptim.Param[float32]{Value: make([]float32, 50*70), Shape: []int{50, 70}, Grad: make([]float32, 50*70)}
	opt, err := goptim.NewMuon([]*goptim.Param[float32]{p}, muon)
	require.NoError(t, err)
	allocations := testing.AllocsPerRun(10, func() {
		if err := opt.Step(); err != nil {
			t.Fatal(err)
		}
	})
	if !goptim.Detector {
		assert.Zero(t, allocations)
	}
}

func TestMuonLeavesOutWhatHasNoGradient(t *testing.T) {
	p := &goptim.Param[float32]{Value: []float32{1, 2}, Shape: []int{1, 2}}
	opt, err := goptim.NewMuon([]*goptim.Param[float32]{p}, muon)
	require.NoError(t, err)
	require.NoError(t, opt.Step())
	assert.Equal(t, []float32{1, 2}, p.Value)
	p.Grad = []float32{0, float32(math.NaN())}
	require.NoError(t, opt.Step())
	for _, x := range p.Value {
		assert.NotEqual(t, x, x, "a NaN in the gradient is in all of the update")
	}
}

func TestMuonRefuses(t *testing.T) {
	good := goptim.Param[float32]{Name: "w", Value: make([]float32, 6), Shape: []int{2, 3}, Grad: make([]float32, 6)}
	for says, spoil := range map[string]func(p *goptim.Param[float32]){
		"parameter 0 (w): shape [0 3], expected one of 6 elements": func(p *goptim.Param[float32]) { p.Shape = []int{0, 3} },
		"shape [2 -1], expected one of 6 elements":                 func(p *goptim.Param[float32]) { p.Shape = []int{2, -1} },
		"shape [2 4], expected one of 6 elements":                  func(p *goptim.Param[float32]) { p.Shape = []int{2, 4} },
		"shape [6], expected two dimensions":                       func(p *goptim.Param[float32]) { p.Shape = []int{6} },
		"shape [1 2 3], expected two dimensions":                   func(p *goptim.Param[float32]) { p.Shape = []int{1, 2, 3} },
		"shape [2 3 1], expected two dimensions":                   func(p *goptim.Param[float32]) { p.Shape = []int{2, 3, 1} },
		"shape [], expected two dimensions":                        func(p *goptim.Param[float32]) { p.Shape = nil },
		"shape [0 3], expected two dimensions":                     func(p *goptim.Param[float32]) { p.Shape, p.Value, p.Grad = []int{0, 3}, nil, nil },
		"the gradient has 5 elements, expected 6":                  func(p *goptim.Param[float32]) { p.Grad = make([]float32, 5) },
	} {
		p := good
		spoil(&p)
		_, err := goptim.NewMuon([]*goptim.Param[float32]{&p}, muon)
		require.ErrorIs(t, err, goptim.ErrParam)
		require.ErrorContains(t, err, says)
	}
	p := good
	opt, err := goptim.NewMuon([]*goptim.Param[float32]{&p}, muon)
	require.NoError(t, err)
	p.Value, p.Shape, p.Grad = make([]float32, 9), []int{3, 3}, nil
	require.ErrorContains(t, opt.Step(), "9 elements, expected 6 as at first")
	for _, spoil := range []func(o *goptim.MuonOptions){
		func(o *goptim.MuonOptions) { o.LR = -1 },
		func(o *goptim.MuonOptions) { o.WeightDecay = math.NaN() },
		func(o *goptim.MuonOptions) { o.Momentum = -1 },
		func(o *goptim.MuonOptions) { o.Eps = -1 },
		func(o *goptim.MuonOptions) { o.NSSteps = 100 },
		func(o *goptim.MuonOptions) { o.AdjustLR = 7 },
	} {
		o := muon
		spoil(&o)
		_, err := goptim.NewMuon([]*goptim.Param[float32]{&good}, o)
		require.ErrorIs(t, err, goptim.ErrOption)
	}
	_, err = goptim.NewMuon([]*goptim.Param[float32]{&good, &good}, muon)
	require.ErrorContains(t, err, "parameter 1 (w) is given twice")
	_, err = goptim.NewMuon([]*goptim.Param[float32]{&good, nil}, muon)
	require.ErrorContains(t, err, "parameter 1 is nil")
	_, err = goptim.NewMuon[float32](nil, muon)
	require.ErrorIs(t, err, goptim.ErrParam)
}

func BenchmarkMuon(b *testing.B) {
	for _, n := range []int{64, 1024} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			p := &goptim.Param[float32]{Value: make([]float32, n*n), Shape: []int{n, n}, Grad: make([]float32, n*n)}
			for i := range p.Grad {
				p.Grad[i] = rand.Float32()
			}
			opt, err := goptim.NewMuon([]*goptim.Param[float32]{p}, muon)
			require.NoError(b, err)
			for b.Loop() {
				if err := opt.Step(); err != nil {
					b.Fatal(err)
				}
			}
			products := float64(muon.NSSteps * 3 * 2 * n * n * n)
			b.ReportMetric(products*float64(b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
		})
	}
}
