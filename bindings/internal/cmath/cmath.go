// Package cmath calls the C library where its bits matter.
package cmath

/*
#cgo LDFLAGS: -lm
#include <math.h>
*/
import "C"

// Pow is C's pow, which Python's ** on floats is too. math.Pow differs from it in the last bits.
func Pow(x, y float64) float64 { return float64(C.pow(C.double(x), C.double(y))) }
