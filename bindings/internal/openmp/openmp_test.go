package openmp_test

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/goptim/goptim/bindings/internal/openmp"
)

func TestTeamNeedsBothFunctions(t *testing.T) {
	defer openmp.Use(0, 0)
	for _, c := range []struct {
		parallel, number uintptr
		usable           bool
	}{{0, 0, false}, {1, 0, false}, {0, 1, false}, {1, 1, true}} {
		openmp.Use(c.parallel, c.number)
		assert.Equal(t, c.usable, openmp.Team() != nil, "%+v", c)
	}
}
