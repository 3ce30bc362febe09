//go:build !amd64 && !arm64

package fpstate

// Get returns 0 on this architecture.
func Get() State { return 0 }

// Set does nothing on this architecture.
func Set(State) {}
