//go:build !linux

package engine

import (
	"sync"
	"sync/atomic"
)

// An event is a bell that one goroutine waits for.
type event struct {
	n    atomic.Uint32
	once sync.Once
	bell chan struct{}
}

func (e *event) init() { e.bell = make(chan struct{}, 1) }

// ring wakes the waiting goroutine, now or when it comes to wait.
func (e *event) ring() {
	e.once.Do(e.init)
	e.n.Add(1)
	select {
	case e.bell <- struct{}{}:
	default:
	}
}

// wait returns the count of rings once it is not heard.
func (e *event) wait(heard uint32) uint32 {
	e.once.Do(e.init)
	for {
		if n := e.n.Load(); n != heard {
			return n
		}
		<-e.bell
	}
}
