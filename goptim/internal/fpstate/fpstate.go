// Package fpstate reads and sets how the current thread computes with floating-point numbers: the rounding mode, and
// whether subnormal numbers count as zero.
//
// The operating system keeps this state for each thread. A goroutine that relies on it must be locked to its thread.
package fpstate

// A State holds the control bits of a thread: of MXCSR on amd64, of FPCR on arm64, none elsewhere.
type State uint64
