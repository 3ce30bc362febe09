package heap

import (
	"errors"
	"syscall"
	"testing"
)

func TestGrowSaysWhereThereIsNoRoom(t *testing.T) {
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_AS, &before); err != nil {
		t.Fatal(err)
	}
	defer syscall.Setrlimit(syscall.RLIMIT_AS, &before)
	if err := syscall.Setrlimit(syscall.RLIMIT_AS, &syscall.Rlimit{Cur: 16 << 30, Max: before.Max}); err != nil {
		t.Skip(err)
	}
	s := make([]float64, 1)
	grown, err := Grow(s, 4<<30)
	if size := Error(0); grown != nil || !errors.As(err, &size) || size != 32<<30 {
		t.Fatalf("%d elements, %v", len(grown), err)
	}
	defer func() {
		if err, _ := recover().(error); !errors.As(err, new(Error)) || len(s) != 1 {
			t.Errorf("%v, %d elements", err, len(s))
		}
	}()
	Grown(&s, 4<<30)
}
