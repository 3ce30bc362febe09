package gonumopt

import "github.com/goptim/goptim/goptim"

func method[O goptim.Optimizer](make func(p Params) (O, error)) *Method {
	return &Method{New: func(p Params) (goptim.Optimizer, error) { return make(p) }}
}

// SGD is goptim.SGD.
func SGD(o goptim.SGDOptions) *Method {
	return method(func(p Params) (*goptim.SGD[float64], error) { return goptim.NewSGD(p, o) })
}

// Adam is goptim.Adam.
func Adam(o goptim.AdamOptions) *Method {
	return method(func(p Params) (*goptim.Adam[float64], error) { return goptim.NewAdam(p, o) })
}

// AdamW is goptim.Adam with decoupled weight decay.
func AdamW(o goptim.AdamOptions) *Method {
	return method(func(p Params) (*goptim.Adam[float64], error) { return goptim.NewAdamW(p, o) })
}

// AMSGrad is goptim.Adam with the largest second moment.
func AMSGrad(o goptim.AdamOptions) *Method {
	return method(func(p Params) (*goptim.Adam[float64], error) { return goptim.NewAMSGrad(p, o) })
}

// Adagrad is goptim.Adagrad.
func Adagrad(o goptim.AdagradOptions) *Method {
	return method(func(p Params) (*goptim.Adagrad[float64], error) { return goptim.NewAdagrad(p, o) })
}

// Adadelta is goptim.Adadelta.
func Adadelta(o goptim.AdadeltaOptions) *Method {
	return method(func(p Params) (*goptim.Adadelta[float64], error) { return goptim.NewAdadelta(p, o) })
}

// Adafactor is goptim.Adafactor. With a shape, the variables are batches of matrices; without one they are a vector.
func Adafactor(o goptim.AdafactorOptions, shape ...int) *Method {
	return method(func(p Params) (*goptim.Adafactor[float64], error) {
		p[0].Shape = shape
		return goptim.NewAdafactor(p, o)
	})
}

// Adamax is goptim.Adamax.
func Adamax(o goptim.AdamaxOptions) *Method {
	return method(func(p Params) (*goptim.Adamax[float64], error) { return goptim.NewAdamax(p, o) })
}

// ASGD is goptim.ASGD.
func ASGD(o goptim.ASGDOptions) *Method {
	return method(func(p Params) (*goptim.ASGD[float64], error) { return goptim.NewASGD(p, o) })
}

// NAdam is goptim.NAdam.
func NAdam(o goptim.NAdamOptions) *Method {
	return method(func(p Params) (*goptim.NAdam[float64], error) { return goptim.NewNAdam(p, o) })
}

// RAdam is goptim.RAdam.
func RAdam(o goptim.RAdamOptions) *Method {
	return method(func(p Params) (*goptim.RAdam[float64], error) { return goptim.NewRAdam(p, o) })
}

// RMSprop is goptim.RMSprop.
func RMSprop(o goptim.RMSpropOptions) *Method {
	return method(func(p Params) (*goptim.RMSprop[float64], error) { return goptim.NewRMSprop(p, o) })
}

// Rprop is goptim.Rprop.
func Rprop(o goptim.RpropOptions) *Method {
	return method(func(p Params) (*goptim.Rprop[float64], error) { return goptim.NewRprop(p, o) })
}

// Muon is goptim.Muon. The variables are a matrix with the given numbers of rows and columns.
func Muon(o goptim.MuonOptions, rows, cols int) *Method {
	return method(func(p Params) (*goptim.Muon[float64], error) {
		p[0].Shape = []int{rows, cols}
		return goptim.NewMuon(p, o)
	})
}
