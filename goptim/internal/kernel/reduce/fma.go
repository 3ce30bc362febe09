package reduce

import (
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/lane"
)

// fmaExact is fma for float32 if rounding twice could give another result.
func fmaExact[T kernel.Float](a, b, c T) T {
	return T(lane.FMA32(float32(a), float32(b), float32(c)))
}
