// Package fpstate reads and sets the floating-point state of the current thread: the rounding mode, and whether subnormal
// numbers are treated as zero.
//
// Each thread of the operating system has its own state. A goroutine that relies on it must be locked to its thread.
package fpstate

// A State has the control bits of a thread: those of MXCSR on amd64 and of FPCR on arm64, and none on other architectures.
type State uint64
