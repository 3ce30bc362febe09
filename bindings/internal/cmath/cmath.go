// Package cmath calls functions of the C library whose exact results are required.
package cmath

/*
#cgo LDFLAGS: -lm
#include <math.h>
*/
import "C"

// Pow is C's pow, which Python's ** uses for floats. math.Pow differs in the last bits.
func Pow(x, y float64) float64 { return float64(C.pow(C.double(x), C.double(y))) }

// Exp is C's exp, which Python's math.exp uses.
func Exp(x float64) float64 { return float64(C.exp(C.double(x))) }

// Log is C's log, which Python's math.log uses.
func Log(x float64) float64 { return float64(C.log(C.double(x))) }
