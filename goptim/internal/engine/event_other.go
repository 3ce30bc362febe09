//go:build !linux

package engine

import (
	"sync"
	"sync/atomic"
)

// An event wakes up one waiting goroutine.
type event struct {
	n    atomic.Uint32
	once sync.Once
	wake chan struct{}
}

func (e *event) init() { e.wake = make(chan struct{}, 1) }

// signal wakes up the waiting goroutine, now or when it begins to wait.
func (e *event) signal() {
	e.once.Do(e.init)
	e.n.Add(1)
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// wait returns the number of signals as soon as it differs from seen.
func (e *event) wait(seen uint32) uint32 {
	e.once.Do(e.init)
	for {
		if n := e.n.Load(); n != seen {
			return n
		}
		<-e.wake
	}
}
