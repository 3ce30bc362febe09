package reduce

import (
	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/goptim/internal/kernel/lane"
)

// fmaExact is fma for float32 where rounding twice may differ.
func fmaExact[T kernel.Float](a, b, c T) T {
	var x [1]float32
	lane.BroadcastFloat32s(float32(a)).MulAdd(lane.BroadcastFloat32s(float32(b)), lane.BroadcastFloat32s(float32(c))).Store(x[:])
	return T(x[0])
}
