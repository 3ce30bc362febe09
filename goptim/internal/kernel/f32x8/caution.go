//go:build goexperiment.simd && amd64

package f32x8

// Kernels whose names end with Agrees compute masks of Liang et al., "Cautious Optimizers", arXiv:2411.16085, Algorithm 1.

// agrees is 1 where the update has the sign of the gradient, and otherwise 0.
func agrees(update, g vector, one bits) vector {
	return above(update.Mul(g), zeros()).And(one).BitsToFloat32()
}

// masked is the update times inverse where it has the sign of the gradient, and times 0 elsewhere; with always, times inverse
// everywhere.
func masked(update, g, inverse vector, always bits) vector {
	return update.Mul(above(update.Mul(g), zeros()).Or(always).And(inverse.ToBits()).BitsToFloat32())
}
