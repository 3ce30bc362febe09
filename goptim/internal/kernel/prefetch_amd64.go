package kernel

// Prefetch prefetches cache lines of 64 bytes from every address on into the L2 cache, which supports more outstanding lines
// than L1. An invalid address has no effect.
//
//go:noescape
func Prefetch(addresses []uintptr, lines int)
