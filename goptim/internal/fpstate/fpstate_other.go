//go:build !amd64 && !arm64

package fpstate

// Get returns the state of the current thread, where it is known how to read it.
func Get() State { return 0 }

// Set changes the state of the current thread, where it is known how to do so.
func Set(State) {}
