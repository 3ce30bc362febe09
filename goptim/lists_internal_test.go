package goptim

import (
	"fmt"
	"math"
	"testing"
	"time"
	"unsafe"

	"github.com/goptim/goptim/goptim/internal/engine"
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
	onHeap = append(onHeap[:0], c.group)
	return c
}

func (c *listCall) run(threads int) error {
	_, err := c.kind.Call(uintptr(unsafe.Pointer(c.group)), steps.Call{Threads: threads})
	return err
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
				"GradNorm": {2, 0}, "ClipGradNorm": {2, 0, 1e9, 0}, "Scale": {1 - 1e-9}, "Zero": {}, "Unscale": {.99999999999999}, "GradNorm inf": {math.Inf(1), 0},
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
