// Other is a library with a Go runtime of its own, for the test of two runtimes in one process.
package main

import "C"

import (
	"runtime"
	"sync"
)

// OtherSum adds the numbers below n on four goroutines, which allocate and collect garbage.
//
//export OtherSum
func OtherSum(n C.longlong) C.longlong {
	var wait sync.WaitGroup
	parts := make([]C.longlong, 4)
	for i := range parts {
		wait.Go(func() {
			var all []*C.longlong
			for x := C.longlong(i); x < n; x += 4 {
				all = append(all, &x)
				parts[i] += *all[len(all)-1]
			}
			runtime.GC()
		})
	}
	wait.Wait()
	return parts[0] + parts[1] + parts[2] + parts[3]
}

// OtherFault returns 1 if a fault in Go becomes a panic that Go recovers from.
//
//export OtherFault
func OtherFault() (recovered C.longlong) {
	defer func() {
		if recover() != nil {
			recovered = 1
		}
	}()
	var p *C.longlong
	return *p
}

func main() {}
