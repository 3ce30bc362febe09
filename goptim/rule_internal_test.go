package goptim

import (
	"reflect"
	"testing"

	testify "github.com/stretchr/testify/require"

	"github.com/goptim/goptim/goptim/internal/kernel"
	"github.com/goptim/goptim/internal/steps"
)

// TestKernelsForBFloat16 names elementwise optimizers without a kernel for bfloat16, whose scalars may have another name.
func TestKernelsForBFloat16(t *testing.T) {
	narrow := 0
	for _, k := range steps.Kinds() {
		if !k.Stored || k.Sparse || k.Spec == any(scheduleFreeSwitch) {
			continue // the last one is not a step of an optimizer
		}
		arithmetic := reflect.Value{}
		if k.Spec != nil {
			arithmetic = reflect.ValueOf(k.Spec).Elem().FieldByName("arithmetic")
		}
		if !arithmetic.IsValid() {
			continue // not elementwise
		}
		testify.Equal(t, kernel.VectorBits() == 0, arithmetic.FieldByName("bf16").IsNil(), k.Name)
		narrow++
	}
	testify.Greater(t, narrow, 10)
}
