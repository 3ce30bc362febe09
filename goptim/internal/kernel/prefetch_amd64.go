package kernel

// Prefetch asks for cache lines of 64 bytes from every address on. They come to the second cache, which waits for more
// lines at a time than the first. A wrong address does no harm.
//
//go:noescape
func Prefetch(addresses []uintptr, lines int)
