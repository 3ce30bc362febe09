package engine

import (
	"sync/atomic"
	"syscall"
	"unsafe"
)

// An event wakes up one thread that waits in the system kernel.
type event struct{ n atomic.Uint32 }

const (
	futexWait = 0 | 128 // FUTEX_WAIT | FUTEX_PRIVATE_FLAG
	futexWake = 1 | 128
)

// signal wakes up the waiting thread, now or when it begins to wait.
func (e *event) signal() {
	e.n.Add(1)
	syscall.RawSyscall6(syscall.SYS_FUTEX, uintptr(unsafe.Pointer(&e.n)), futexWake, 1, 0, 0, 0)
}

// wait returns the number of signals as soon as it differs from seen.
func (e *event) wait(seen uint32) uint32 {
	for {
		if n := e.n.Load(); n != seen {
			return n
		}
		syscall.Syscall6(syscall.SYS_FUTEX, uintptr(unsafe.Pointer(&e.n)), futexWait, uintptr(seen), 0, 0, 0)
	}
}
