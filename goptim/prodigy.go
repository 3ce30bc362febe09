package goptim

import (
	"github.com/goptim/goptim/goptim/internal/engine"
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// ProdigyOptions are the hyperparameters of Prodigy, and what it estimates.
type ProdigyOptions struct {
	LR                float64    `torch:"lr" default:"1" range:"[0,inf]"`          // factor of the learning rate, which is D
	Betas             [2]float64 `torch:"betas" default:"0.9 0.999" range:"[0,1)"` // decay rates of the moments
	Beta3             float64    `torch:"beta3,null" range:"[0,1]"`                // decay rate of the estimate; 0 for the root of Betas[1]
	Eps               float64    `torch:"eps" default:"1e-8" range:"(0,inf]"`      // added to the denominator, times D
	WeightDecay       float64    `torch:"weight_decay" range:"[-inf,inf]"`
	Decouple          bool       `torch:"decouple"`            // shrink the parameter itself, as is the default in Python, instead of adding the decay to the gradient
	UseBiasCorrection bool       `torch:"use_bias_correction"` // multiply the learning rate by Adam's bias corrections
	SafeguardWarmup   bool       `torch:"safeguard_warmup"`    // leave LR out of the denominator of the estimate
	D0                float64    `torch:"d0" default:"1e-6" range:"(0,inf]"`
	DCoef             float64    `torch:"d_coef" default:"1" range:"[-inf,inf]"`        // factor of the estimate
	GrowthRate        float64    `torch:"growth_rate" default:"inf" range:"[-inf,inf]"` // D grows by at most this factor in a step
	SliceP            int        `torch:"slice_p" default:"1" range:"[1,inf]"`          // every how many elements of a parameter the estimate uses

	D          float64 `torch:"d" range:"-"`             // the estimate; at first D0
	DMax       float64 `torch:"d_max" range:"-"`         // the largest one so far; at first D0
	DNumerator float64 `torch:"d_numerator"`             // of the estimate
	K          int     `torch:"k"`                       // number of steps
	DDenom     float64 `torch:"d_denom,initial"`         // of the last estimate
	DHat       float64 `torch:"d_hat,initial" range:"-"` // the last estimate
}

// The states of Prodigy after the moments.
const prodigySum, prodigyStart = 2, 3

var prodigy = elementwiseSpec(class[ProdigyOptions]{
	name: "Prodigy", integer: true, together: true, unstored: true,
	results: []string{"d", "d_max", "d_numerator", "k", "d_denom", "d_hat"},
	states: []state{
		{key: "exp_avg", when: "betas", above: true}, {key: "exp_avg_sq"},
		{key: "s", of: "slices", when: "slice_p"}, {key: "p0", of: "start", when: "slice_p", copied: true},
	},
	complete: func(o *ProdigyOptions) {
		if o.D == 0 {
			o.D = o.D0
		}
		if o.DMax == 0 {
			o.DMax = o.D0
		}
	},
	encodings: map[string]any{"beta3": positive(0)},
}, (*ProdigyOptions).scalars, f32.Prodigy, f64.Prodigy, orderOfNorms, idleGroup).estimating(estimateProdigy)

// Prodigy is the optimizer of Mishchenko & Defazio, "Prodigy: An Expeditiously Adaptive Parameter-Free Learner", arXiv:2306.06101,
// Algorithm 4, which estimates the learning rate D from all parameters: those of the optimizer, not of Groups. The estimate is equal to
// that of the Python package prodigyopt up to rounding, since the order of its products is not specified. Here, they are added like
// torch's sums. For equal estimates, results are bit-for-bit equal to prodigyopt.Prodigy. A step without a gradient other than 0 is not
// counted. The sums of long gradients depend on the number of threads, as torch's do.
type Prodigy[T Element] struct {
	ProdigyOptions     // used by the next Step, which changes the estimate; may be changed between steps
	Workers        int // maximum number of threads of a Step; 0 means GOMAXPROCS
	elementwise[T, ProdigyOptions, kernel.Prodigy]
}

// NewProdigy returns a new Prodigy for params. The error wraps ErrOption or ErrParam.
func NewProdigy[T Element](params []*Param[T], o ProdigyOptions) (*Prodigy[T], error) {
	opt := &Prodigy[T]{ProdigyOptions: o}
	return made(opt, opt.begin(prodigy, &opt.ProdigyOptions, &opt.Workers, params))
}

// scalars returns the scalars of a step, except those that depend on the new estimate.
func (o *ProdigyOptions) scalars(c *stepContext) kernel.Prodigy {
	beta1, beta2, d := o.Betas[0], o.Betas[1], o.D
	beta3 := o.beta3(c)
	rate := d * o.LR
	if o.UseBiasCorrection {
		t := float64(o.K + 1)
		root := c.power(1-c.power(beta2, t, "TypeError"), 0.5, "TypeError")
		rate *= c.quotient(root, 1-c.power(beta1, t, "TypeError"))
	}
	h := kernel.Prodigy{Beta1: beta1, Beta2: beta2, Beta3: beta3, Rate: rate}
	if decay := o.WeightDecay; o.Decouple {
		h.Coupled = kernel.CoupledOf(false, 0)
		if decay != 0 {
			h.Decays, h.Decay = 1, c.narrow(-decay*rate)
		}
	} else {
		h.Coupled = c.coupled(false, decay)
	}
	h.Step = c.narrow(-rate)
	if h.Estimates = kernel.Flag(o.LR > 0 && !c.idle); h.Estimates == 0 {
		return h
	}
	share := c.quotient(d, o.D0)
	h.Weight = share * rate
	h.C1, h.C2, h.C3 = c.narrow(d*(1-beta1)), c.narrow(d*d*(1-beta2)), c.narrow(h.Weight)
	if o.SafeguardWarmup {
		h.C3 = c.narrow(share * d)
	}
	return h
}

func (o *ProdigyOptions) beta3(c *stepContext) float64 {
	if o.Beta3 == 0 {
		return c.sqrt(o.Betas[1])
	}
	return o.Beta3
}

// advance estimates d from the sums over all parameters, as Python computes it. max and min of Python keep the first of two numbers
// unless the second one is larger or smaller.
func (o *ProdigyOptions) advance(numerator, denominator, beta3 float64) {
	o.DNumerator = float64(o.DNumerator*beta3) + numerator
	o.DDenom = denominator
	d := o.D
	o.DHat = o.DCoef * o.DNumerator / denominator
	if d == o.D0 && o.DHat > d {
		d = o.DHat
	}
	if o.DHat > o.DMax {
		o.DMax = o.DHat
	}
	grown := d * o.GrowthRate
	if o.D = o.DMax; grown < o.D {
		o.D = grown
	}
	o.K++
}

// estimateProdigy updates s by the gradients, and then the estimate.
func estimateProdigy(p *pass[kernel.Prodigy], threads int, team engine.Team) (bool, error) {
	e := &p.estimating
	if err := e.measure(p, threads, team); err != nil {
		return false, err
	}
	numerator, denominator := 0.0, 0.0
	for i := range e.rows {
		r := &e.rows[i]
		numerator += float64(p.distinct[p.at[r.row]].scalars.Weight * r.product)
		denominator += r.size
	}
	if denominator == 0 {
		if !e.moments {
			e.onlyMoments(p)
		}
		return false, nil
	}
	first, i := 0, 0
	for k := range p.added {
		a := &p.added[k]
		of, _ := a.rule.(*bound[ProdigyOptions, kernel.Prodigy])
		if k == 0 {
			a.context.log = &p.log
			of.o.advance(numerator, denominator, of.o.beta3(&a.context))
		} else {
			shareEstimate(of.o, p.added[0].rule)
		}
		d := of.o.D
		for ; i < a.end; i++ {
			if t := p.at[i]; i == first || t != p.at[i-1] {
				h := &p.distinct[t].scalars
				h.Eps = d * of.o.Eps
				if of.o.Betas[0] <= 0 {
					h.Step = -h.Rate * d
				}
				if e.moments {
					h.Estimates = 0
				}
				l := &p.distinct[t].layout
				l.State[prodigySum], l.State[prodigyStart], l.Used = engine.Unused, engine.Unused, prodigySum
			}
		}
		first = a.end
	}
	p.Prepare()
	return true, nil
}

// shareEstimate sets the estimate of a group to that of the first one.
func shareEstimate(o *ProdigyOptions, first rule[kernel.Prodigy]) {
	if of, ok := first.(*bound[ProdigyOptions, kernel.Prodigy]); ok {
		o.D, o.DMax, o.DNumerator, o.DDenom, o.DHat, o.K = of.o.D, of.o.DMax, of.o.DNumerator, of.o.DDenom, of.o.DHat, of.o.K
	}
}
