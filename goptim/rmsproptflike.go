package goptim

import (
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/f32"
	"github.com/goptim/goptim/goptim/internal/kernel/f64"
)

// RMSpropTFLikeOptions are the hyperparameters of RMSpropTFLike.
type RMSpropTFLikeOptions struct {
	LR          float64 `torch:"lr" default:"1e-2" range:"[0,inf]"`    // learning rate
	Alpha       float64 `torch:"alpha" default:"0.99" range:"[0,inf]"` // decay rate of the averages
	Eps         float64 `torch:"eps" default:"1e-8" range:"[0,inf]"`   // added to the average of squares, under the root
	WeightDecay float64 `torch:"weight_decay" range:"[0,inf]"`
	Momentum    float64 `torch:"momentum" range:"[0,inf]"` // decay of the momentum buffer; 0 disables it
	Centered    bool    `torch:"centered"`                 // divide by the deviation from the average gradient
}

var rmspropTFLike = elementwiseSpec(class[RMSpropTFLikeOptions]{
	name:    "RMSpropTFLike",
	integer: true,
	states: []state{
		{key: "square_avg", initial: 1}, {key: "momentum_buffer", when: "momentum", above: true}, {key: "grad_avg", when: "centered"},
	},
}, (*RMSpropTFLikeOptions).scalars, f32.RMSpropTFLike, f64.RMSpropTFLike)

// RMSpropTFLike is RMSprop with Eps under the root, and an average of squares that begins with 1, of Stable-Baselines3. See RMSprop.
// It differs from RMSpropTF in how averages are rounded. Results are bit-for-bit equal to
// stable_baselines3.common.sb2_compat.rmsprop_tf_like.RMSpropTFLike.
type RMSpropTFLike[T Element] struct {
	RMSpropTFLikeOptions     // used by the next Step; may be changed between steps
	Workers              int // maximum number of threads of a Step; 0 means GOMAXPROCS
	elementwise[T, RMSpropTFLikeOptions, kernel.RMSpropTFLike]
}

// NewRMSpropTFLike returns a new RMSpropTFLike for params. The error wraps ErrOption or ErrParam.
func NewRMSpropTFLike[T Element](params []*Param[T], o RMSpropTFLikeOptions) (*RMSpropTFLike[T], error) {
	opt := &RMSpropTFLike[T]{RMSpropTFLikeOptions: o}
	return made(opt, opt.begin(rmspropTFLike, &opt.RMSpropTFLikeOptions, &opt.Workers, params))
}

func (o *RMSpropTFLikeOptions) scalars(c *stepContext) kernel.RMSpropTFLike {
	return kernel.RMSpropTFLike{
		Coupled: c.coupled(false, o.WeightDecay), Alpha: o.Alpha, C: c.narrow(1 - o.Alpha), Eps: o.Eps,
		Momentum: o.Momentum, Step: c.narrow(-o.LR),
	}
}
