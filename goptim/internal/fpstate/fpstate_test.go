package fpstate_test

import (
	"math"
	"runtime"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/goptim/goptim/goptim/internal/fpstate"
)

// flush treats subnormal operands and results as zero.
var flush = map[string]fpstate.State{"amd64": 0x8040, "arm64": 1 << 24}

//go:noinline
func half(x float64) float64 { return x / 2 }

func TestSet(t *testing.T) {
	bits, ok := flush[runtime.GOARCH]
	if !ok {
		t.Skip("the state is not known on this architecture")
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	const smallest = 0x1p-1022 // normal number
	before := fpstate.Get()
	assert.Equal(t, 0x1p-1023, half(smallest))
	fpstate.Set(before | bits)
	set, flushed := fpstate.Get(), half(smallest)
	fpstate.Set(before)
	assert.Equal(t, before|bits, set)
	assert.Zero(t, math.Float64bits(flushed))
	assert.Equal(t, 0x1p-1023, half(smallest))
}
