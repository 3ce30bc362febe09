package gonumopt

import "github.com/goptim/goptim/goptim"

func method[O goptim.Optimizer](make func(p Params) (O, error)) *Method {
	return &Method{New: func(p Params) (goptim.Optimizer, error) {
		o, err := make(p)
		if s, ok := any(o).(interface{ Train() error }); ok && err == nil {
			err = s.Train()
		}
		return o, err
	}}
}

// Adafactor is goptim.Adafactor. With a shape, the variables are batches of matrices; without one they are a vector.
func Adafactor(o goptim.AdafactorOptions, shape ...int) *Method {
	return method(func(p Params) (*goptim.Adafactor[float64], error) {
		p[0].Shape = shape
		return goptim.NewAdafactor(p, o)
	})
}

// Muon is goptim.Muon. The variables are a matrix with the given numbers of rows and columns.
func Muon(o goptim.MuonOptions, rows, cols int) *Method {
	return method(func(p Params) (*goptim.Muon[float64], error) {
		p[0].Shape = []int{rows, cols}
		return goptim.NewMuon(p, o)
	})
}
