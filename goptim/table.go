package goptim

import (
	"fmt"
	"unsafe"

	"github.com/goptim/goptim/goptim/internal/cpow"
	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/internal/steps"
)

func init() {
	steps.DescribeStruct[engine.Row]("Row")
	steps.DescribeStruct[sparseRow]("SparseRow")
	constants := map[string]int{
		"States": engine.States, "First": int(engine.First), "Owned": int(engine.Owned), "FirstScalar": int(engine.FirstScalar),
		"Master": int(engine.Master), "Stochastic": int(engine.Stochastic), "Kahan": int(engine.Kahan), "MasterState": engine.MasterState,
	}
	for d := engine.None; d <= engine.Float16; d++ {
		constants[d.String()] = int(d)
	}
	steps.DescribeConstants(constants)
}

// rowsOf returns the rows of a group's table. It checks all of them before anything is written.
func rowsOf(g *steps.Group, optimizer string, l engine.Layout) ([]engine.Row, error) {
	rows := unsafe.Slice((*engine.Row)(engine.Pointer(g.Table)), g.Rows)
	for i := range rows {
		if err := rows[i].Check(&l); err != nil {
			return nil, fmt.Errorf("goptim: %s: row %d: %w: %w", optimizer, i, err, ErrParam)
		}
	}
	return rows, nil
}

func powOf(c steps.Call) func(x, y float64) float64 {
	if c.Pow != nil {
		return c.Pow
	}
	return cpow.Pow
}
