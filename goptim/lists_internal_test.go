package goptim

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"testing"
	"time"
	"unsafe"

	testify "github.com/stretchr/testify/require"

	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/internal/steps"
)

// A listCall is a call of an operation on lists with one group.
type listCall struct {
	kind  *steps.Kind
	group *steps.Group
	rows  []engine.Row
}

func newListCall(name string, rows []engine.Row, options ...float64) *listCall {
	at, err := steps.Find(name)
	if err != nil {
		panic(err)
	}
	c := &listCall{steps.Kinds()[at], &steps.Group{Count: int64(len(options)), Rows: int64(len(rows))}, rows}
	copy(c.group.Scalars[:], options)
	if len(rows) > 0 {
		c.group.Table = uintptr(unsafe.Pointer(&c.rows[0]))
	}
	onHeap = []any{c}
	return c
}

func (c *listCall) run(threads int) error {
	_, err := c.kind.Call(uintptr(unsafe.Pointer(c.group)), steps.Call{Threads: threads})
	return err
}

// mixedRows returns parameters of both types, and their rows in the order of their index.
func mixedRows(sizes ...int) (float32s []*Param[float32], float64s []*Param[float64], rows []engine.Row) {
	for k, n := range sizes {
		p, q := &Param[float32]{Grad: make([]float32, n)}, &Param[float64]{Grad: make([]float64, n)}
		for i := range n {
			q.Grad[i] = math.Sin(float64(i + 3*k))
			p.Grad[i] = float32(q.Grad[i])
		}
		float32s, float64s = append(float32s, p), append(float64s, q)
		rows = appendGrads(appendGrads(rows, float32s[k:]), float64s[k:])
	}
	return float32s, float64s, rows
}

// TestNormsOfMixedTypes compares a norm of both types with a plain loop over the norms of the rows.
func TestNormsOfMixedTypes(t *testing.T) {
	for _, normType := range []float64{2, math.Inf(1)} {
		float32s, float64s, rows := mixedRows(3, 100, 1003)
		total, most := 0.0, 0.0
		norms := make([]float64, len(rows))
		withScalars := slices.Clone(rows)
		for i := range withScalars {
			withScalars[i].AddScalar(0, engine.Float64)
			onHeap = append(onHeap, norms)
			withScalars[i].State[0] = uintptr(unsafe.Pointer(&norms[i]))
		}
		testify.NoError(t, newListCall("Norms", withScalars, normType, 0, 0).run(1))
		var lanes [4]float64
		for i, x := range norms {
			if i < 4 {
				lanes[i] = x * x
			}
			most = max(most, x)
		}
		for _, x := range lanes {
			total += x
		}
		for _, x := range norms[4:] {
			total = math.FMA(x, x, total)
		}
		want := math.Sqrt(total)
		if normType != 2 {
			want = most
		}
		c := newListCall("ClipGradNorm", rows, normType, 0, 0, want/2, 0)
		testify.NoError(t, c.run(2))
		results := c.group.Results()
		testify.Equal(t, want, results[0])
		testify.Equal(t, 1/(want+1e-6)*(want/2), results[1])
		before32, before64, _ := mixedRows(3, 100, 1003)
		for k := range before32 {
			for i := range before32[k].Grad {
				testify.Equal(t, before32[k].Grad[i]*float32(results[1]), float32s[k].Grad[i])
				testify.Equal(t, before64[k].Grad[i]*results[1], float64s[k].Grad[i])
			}
		}
	}
}

func TestUnscale(t *testing.T) {
	for _, inv := range []float64{1, .25, .3} {
		for _, bad := range []float64{0, math.Inf(1), math.Inf(-1), math.NaN()} {
			for _, at := range []int{0, 1002, 599_999} {
				float32s, _, rows := mixedRows(1003, 600_000)
				n := min(at, 1002)
				p := float32s[0].Grad[n:]
				if at > 1002 {
					p = float32s[1].Grad[at:]
				}
				p[0] = float32(bad)
				c := newListCall("Unscale", rows, inv)
				testify.NoError(t, c.run(2))
				testify.Equal(t, kernel.Flag(bad != 0), c.group.Results()[0])
				before, _, _ := mixedRows(1003, 600_000)
				testify.Equal(t, before[0].Grad[5]*float32(inv), float32s[0].Grad[5])
				testify.Equal(t, before[1].Grad[77_777]*float32(inv), float32s[1].Grad[77_777])
			}
		}
	}
	// A product that overflows does not count.
	p := &Param[float32]{Grad: []float32{3e38}}
	c := newListCall("Unscale", appendGrads(nil, []*Param[float32]{p}), 4)
	testify.NoError(t, c.run(1))
	testify.Zero(t, c.group.Results()[0])
	testify.Equal(t, float32(math.Inf(1)), p.Grad[0])
}

// TestDivideAndClamp checks a true division, and bounds that are NaN or equal.
func TestDivideAndClamp(t *testing.T) {
	nan := math.NaN()
	for _, c := range []struct {
		kind    string
		options []float64
		want    func(x float32) float32
	}{
		{"Divide", []float64{.3}, func(x float32) float32 { return x / float32(.3) }},
		{"Scale", []float64{.3}, func(x float32) float32 { return x * float32(.3) }},
		{"Clamp", []float64{nan, 1}, func(float32) float32 { return float32(nan) }},
		{"Clamp", []float64{-1, nan}, func(float32) float32 { return float32(nan) }},
		{"Clamp", []float64{.5, .25}, func(float32) float32 { return .25 }}, // torch's order: first the minimum
		{"Clamp", []float64{-.5, .25}, func(x float32) float32 { return min(max(x, -.5), .25) }},
	} {
		params, _, rows := mixedRows(37)
		params[0].Grad[7] = float32(nan)
		before := slices.Clone(params[0].Grad)
		testify.NoError(t, newListCall(c.kind, rows, c.options...).run(1))
		for i, x := range params[0].Grad {
			want := c.want(before[i])
			if i == 7 {
				want = float32(nan)
			}
			testify.Equal(t, fmt.Sprint(want), fmt.Sprint(x), "%s %v, element %d", c.kind, c.options, i)
		}
	}
}

// TestListCallsRefuse checks that a call with bad rows or options changes nothing.
func TestListCallsRefuse(t *testing.T) {
	params, _, rows := mixedRows(4, 5)
	rows[2].Grad, rows[2].GradType = rows[2].Param, engine.Float32
	for says, c := range map[string]*listCall{
		"Scale: row 2: a gradient of float32; expected none":    newListCall("Scale", rows, .5),
		"Lerp: row 0: a gradient of none; expected float32":     newListCall("Lerp", rows, .5),
		"GradNorm: norm_type is 3, expected 2 or infinity":      newListCall("GradNorm", rows[:2], 3, 0, 0),
		"ClipGradNorm: order is 3, expected 0 to 2":             newListCall("ClipGradNorm", rows[:2], 2, 3, 0, 1, 0),
		"1e+40 cannot be converted to float32":                  newListCall("Clamp", rows[:2], -1e40, 1e40),
		"GradNorm: row 0 has no elements, and therefore no inf": newListCall("GradNorm", []engine.Row{{Types: rows[0].Types}}, math.Inf(1), 0, 0),
	} {
		onHeap = append(onHeap, c)
		testify.ErrorContains(t, c.run(1), says)
	}
	testify.Equal(t, float32(math.Sin(2)), params[0].Grad[2])
	c := newListCall("Zero", rows[:2])
	_, err := c.kind.Call(uintptr(unsafe.Pointer(c.group)), steps.Call{Threads: 1, OnlyCheck: true})
	testify.NoError(t, err)
	testify.Equal(t, float32(math.Sin(2)), params[0].Grad[2])
	testify.NoError(t, c.run(1))
	testify.Zero(t, params[0].Grad[2])
	runtime.KeepAlive(params)
}

var benchmarkLists = []struct {
	name  string
	sizes func() []int
}{
	{"policy", func() []int { return []int{256, 64, 4096, 64, 128, 2, 256, 64, 4096, 64, 64, 1, 512, 8} }},
	{"1000 x 64", func() []int { return same(1000, 64) }},
	{"97 x 512 x 512", func() []int { return same(97, 512*512) }},
	{"4 x 6M", func() []int { return same(4, 6<<20) }},
	{"1 x 25M", func() []int { return same(1, 25<<20) }},
}

func same(n, size int) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = size
	}
	return all
}

func BenchmarkClip(b *testing.B) {
	for _, l := range benchmarkLists {
		var params []*Param[float32]
		for _, n := range l.sizes() {
			p := &Param[float32]{Grad: make([]float32, n)}
			for i := range p.Grad {
				p.Grad[i] = float32(math.Sin(float64(i)))
			}
			params = append(params, p)
		}
		for _, threads := range []int{1, 2} {
			for kind, options := range map[string][]float64{
				"GradNorm": {2, 0, 0}, "ClipGradNorm": {2, 0, 0, 1e9, 0}, "Scale": {1 - 1e-9}, "Zero": {}, "Unscale": {.99999999999999}, "GradNorm inf": {math.Inf(1), 0, 0},
			} {
				name := kind
				if kind == "GradNorm inf" {
					name = "GradNorm"
				}
				c := newListCall(name, appendGrads(nil, params), options...)
				b.Run(fmt.Sprintf("%s/%d/%s", l.name, threads, kind), func(b *testing.B) {
					least := time.Hour
					for b.Loop() {
						start := time.Now()
						if err := c.run(threads); err != nil {
							b.Fatal(err)
						}
						least = min(least, time.Since(start))
					}
					b.ReportMetric(float64(least), "ns/best")
				})
			}
		}
	}
}
