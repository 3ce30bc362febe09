package goptim

import (
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// auxAdamOptions are the hyperparameters of the Adam half of MuonWithAuxAdam in Python, and the number of the step, from 1. Go
// programs combine a Muon and another optimizer with NewGroups.
type auxAdamOptions struct {
	LR          float64    `torch:"lr" default:"3e-4"`
	Betas       [2]float64 `torch:"betas" default:"0.9 0.95"`
	Eps         float64    `torch:"eps" default:"1e-10"`
	WeightDecay float64    `torch:"weight_decay"`
	Step        float64    `torch:"step" default:"1"`
}

var _ = elementwiseSpec(class[auxAdamOptions]{
	name: "AuxAdam", uncounted: true,
	states: []state{{key: "exp_avg"}, {key: "exp_avg_sq"}},
}, (*auxAdamOptions).scalars, f32.AuxAdam, f64.AuxAdam)

func (o *auxAdamOptions) scalars(c *stepContext) kernel.AuxAdam {
	beta1, beta2 := o.Betas[0], o.Betas[1]
	return kernel.AuxAdam{
		Decay: 1 - float64(o.LR*o.WeightDecay),
		C1:    c.weight(1 - beta1),
		C2:    c.weight(1 - beta2),
		BC1:   1 - c.power(beta1, o.Step, "TypeError"),
		BC2:   1 - c.power(beta2, o.Step, "TypeError"),
		Eps:   o.Eps,
		Step:  c.narrow(-o.LR),
	}
}
