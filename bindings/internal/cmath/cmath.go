// Package cmath calls functions of the C library whose exact results are required.
package cmath

/*
#cgo LDFLAGS: -lm
#include <math.h>
*/
import "C"

// Pow is C's pow, which Python's ** uses for floats. math.Pow differs in the last bits.
func Pow(x, y float64) float64 { return float64(C.pow(C.double(x), C.double(y))) }
