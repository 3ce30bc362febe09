package main

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestCopiesAreCurrent(t *testing.T) {
	files, err := generate("..")
	require.NoError(t, err)
	for name, text := range files {
		have, err := os.ReadFile(name)
		require.NoError(t, err, "run `make generate`")
		assert.Equal(t, string(text), string(have), "%s is stale: run `make generate`", name)
	}
	require.NoError(t, filepath.WalkDir("..", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(name)
		if _, expected := files[name]; bytes.HasPrefix(text, []byte(mark)) && !expected {
			assert.Fail(t, "a generated file without a source", name)
		}
		return err
	}))
}
