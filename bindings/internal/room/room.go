// Package room makes the stack of a goroutine large enough for signal handlers.
//
// A C program's handler that was installed without SA_ONSTACK runs on the stack that its signal finds in use. During a
// call of Go that is a goroutine's, which begins with a few kilobytes of the heap and has no guard page.
package room

// Make grows the stack of the current goroutine until 256 KiB of it are free. The stack keeps its size if the variable
// GODEBUG has gcshrinkstackoff=1.
func Make()
