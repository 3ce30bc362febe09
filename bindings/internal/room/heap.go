package room

import "runtime"

// arena is the increment by which Go's heap grows.
const arena = 64 << 20

// Heap makes Go's heap larger by an arena, so that small allocations do not need address space later: Go would terminate the
// process if none were left. The heap begins at a random address, so its first arena can have as little as 4 MiB. The memory
// is not touched, so it takes address space only.
func Heap() {
	size := arena // a constant would put the slice on the stack
	runtime.KeepAlive(make([]byte, size))
	runtime.GC()
}
