package heap

import "syscall"

// arena is the increment by which Go's heap grows.
const arena = 64 << 20

// room reports whether the heap can grow by size bytes. It maps and unmaps that much memory.
func room(size int) bool {
	m, err := syscall.Mmap(-1, 0, (size+arena-1)/arena*arena+arena, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		return false
	}
	return syscall.Munmap(m) == nil
}
