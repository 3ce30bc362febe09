package engine

import (
	"sync/atomic"
	"syscall"
	"unsafe"
)

// An event is a bell that one thread waits for in the kernel.
type event struct{ n atomic.Uint32 }

const (
	futexWait = 0 | 128 // FUTEX_WAIT | FUTEX_PRIVATE_FLAG
	futexWake = 1 | 128
)

// ring wakes the waiting thread, now or when it comes to wait.
func (e *event) ring() {
	e.n.Add(1)
	syscall.RawSyscall6(syscall.SYS_FUTEX, uintptr(unsafe.Pointer(&e.n)), futexWake, 1, 0, 0, 0)
}

// wait returns the count of rings once it is not heard.
func (e *event) wait(heard uint32) uint32 {
	for {
		if n := e.n.Load(); n != heard {
			return n
		}
		syscall.Syscall6(syscall.SYS_FUTEX, uintptr(unsafe.Pointer(&e.n)), futexWait, uintptr(heard), 0, 0, 0)
	}
}
