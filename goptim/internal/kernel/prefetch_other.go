//go:build !amd64

package kernel

// Prefetch does nothing on this architecture.
func Prefetch(addresses []uintptr, lines int) {}
