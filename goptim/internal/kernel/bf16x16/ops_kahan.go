//go:build goexperiment.simd && amd64

package bf16x16

// The parameter and its compensation are what a step computes: its rounded value, and the rounded rest. Kernels with vectors of 512
// bits call those with vectors of 256 bits, as for random numbers.

// parted returns both for elements with even indices, in the lower half of each lane.
func parted(x vector, k halves) (_, _ bits) {
	p := rounded(x, k).ShiftAllRight(16)
	return p, rounded(lost(x, p.ShiftAllLeft(16)), k).ShiftAllRight(16)
}

// joinedParted returns both for all elements, as joined does.
func joinedParted(evens, restEvens bits, odds vector, k halves) (_, _ bits) {
	p := rounded(odds, k).And(k.upper)
	rest := rounded(lost(odds, p), k).And(k.upper)
	return evens.Or(p), restEvens.Or(rest)
}

// lost is what x has lost by rounding, or 0 if that is not finite.
func lost(x vector, p bits) vector {
	rest := x.Sub(p.BitsToFloat32())
	return rest.ToBits().AndNot(nan(rest.Sub(rest))).BitsToFloat32()
}
