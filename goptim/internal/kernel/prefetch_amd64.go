package kernel

// Prefetch asks for cache lines of 64 bytes from an address on, at least one. A wrong address does no harm.
//
//go:noescape
func Prefetch(address uintptr, lines int)
