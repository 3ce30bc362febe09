//go:build !amd64

package kernel

// Prefetch asks for cache lines of 64 bytes from every address on, where the machine can be asked.
func Prefetch(addresses []uintptr, lines int) {}
