package room_test

import (
	"runtime"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/goptim/goptim/bindings/internal/room"
)

func stacks() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.StackInuse
}

func TestMake(t *testing.T) {
	before := stacks()
	made, stop := make(chan uint64), make(chan bool)
	go func() {
		room.Make()
		once := stacks()
		room.Make()
		assert.Equal(t, once, stacks(), "there is room already")
		made <- once
		<-stop
	}()
	assert.GreaterOrEqual(t, <-made, before+1<<18)
	close(stop)
}

func TestHeap(t *testing.T) {
	mapped := func() uint64 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapIdle
	}
	room.Heap()
	assert.GreaterOrEqual(t, mapped(), uint64(60<<20), "free after the collection")
	before := mapped()
	runtime.KeepAlive(make([]byte, 8<<20))
	assert.Less(t, mapped(), before, "an allocation takes from it")
}
