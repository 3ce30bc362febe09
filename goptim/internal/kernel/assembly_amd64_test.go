//go:build goexperiment.simd

package kernel_test

import (
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var (
	textOf  = regexp.MustCompile(`^(\S+) STEXT`)
	wide    = regexp.MustCompile(`[ ,(][YZ]\d+`)
	ofLanes = regexp.MustCompile(`\t((?:CVTS|MOVS[SD]\b|XORP|ADDS|SUBS|MULS|DIVS|SQRTS|UCOMIS)\S*)\t.*\bX\d+$`)
)

// TestNoSSEAfterVectors checks the machine code of the kernels. An SSE instruction that writes a register whose upper half is in
// use takes 50 to 100 ns on Intel CPUs, as long as a small tensor. Conversions of scalars are such instructions, so they must
// come before all vectors.
func TestNoSSEAfterVectors(t *testing.T) {
	if testing.Short() {
		t.Skip("the machine code does not depend on the vectors that are used")
	}
	for _, name := range []string{"f32x8", "f32x16", "f64x4", "f64x8", "bf16x16", "bf16x32"} {
		out, err := exec.Command("go", "build", "-gcflags=-S", "./"+name).CombinedOutput()
		require.NoError(t, err, string(out))
		function, vectors, functions := "", false, 0
		for line := range strings.Lines(string(out)) {
			line = strings.TrimRight(line, "\n")
			if m := textOf.FindStringSubmatch(line); m != nil {
				function, vectors = m[1], false
				functions++
			}
			if !strings.HasPrefix(line, "\t0x") {
				continue
			}
			vectors = vectors || wide.MatchString(line)
			if m := ofLanes.FindStringSubmatch(line); m != nil && vectors {
				t.Errorf("%s: %s after a vector instruction: %s", function, m[1], strings.TrimSpace(line))
			}
		}
		require.Greater(t, functions, 20, name)
	}
}
