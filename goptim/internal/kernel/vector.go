// Package kernel is what the kernels of its subfolders share.
package kernel

import "slices"

// OfWidth is the copy of a kernel for vectors of VectorBits, of its copies for this system's widths; single where there
// are no vectors.
func OfWidth[F any](single F, copies ...F) F {
	if i := slices.Index(widths, bits); i >= 0 {
		return copies[i]
	}
	return single
}
