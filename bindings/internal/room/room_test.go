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
