package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestCopiesAreCurrent(t *testing.T) {
	files, err := generate("..")
	require.NoError(t, err)
	var want, got []string
	for name, text := range files {
		want = append(want, name)
		have, err := os.ReadFile(name)
		require.NoError(t, err, "run `make generate`")
		assert.Equal(t, string(text), string(have), "%s is stale: run `make generate`", name)
	}
	for _, pattern := range []string{"../f64/*.go", "../f32/lane.go", "../f32/amd64.go", "../w*/f*/*.go", "../w256/*.go", "../w512/*.go", "../lane/f*/*.go", "../reduce/float64_*.go"} {
		names, err := filepath.Glob(pattern)
		require.NoError(t, err)
		got = append(got, names...)
	}
	assert.ElementsMatch(t, want, got, "a copy without a source")
}
