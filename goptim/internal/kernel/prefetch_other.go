//go:build !amd64

package kernel

// Prefetch asks for cache lines of 64 bytes from an address on, where the machine can be asked.
func Prefetch(address uintptr, lines int) {}
