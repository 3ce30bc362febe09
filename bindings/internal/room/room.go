// Package room makes the stack of a goroutine large enough for signal handlers, and the heap large enough for small allocations.
//
// A handler in C that was installed without SA_ONSTACK runs on the current stack. During a call into Go this is the stack of a
// goroutine, which initially has a few kilobytes on the heap and no guard page.
package room

// Make grows the stack of the current goroutine until 256 KiB are free. With GODEBUG=gcshrinkstackoff=1 the stack keeps its
// size.
func Make()
