// Package kernel is the common code of the kernels in its subfolders.
package kernel

import "slices"

// OfWidth selects the copy of a kernel for vectors of VectorBits, or single if there are no vectors.
func OfWidth[F any](single F, copies ...F) F {
	if i := slices.Index(widths, bits); i >= 0 {
		return copies[i]
	}
	return single
}
