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

func TestLoopsThatCannotBeCopiedForBFloat16(t *testing.T) {
	for body, expected := range map[string]string{
		"\t\t*at(p, i) = x\n\t\ty := at(p, i).Mul(x)\n":          "at(p, i) is loaded after it is stored",
		"\t\tif x {\n\t\t\tcontinue\n\t\t}\n\t\t*at(p, i) = x\n": "a loop has a continue",
	} {
		_, err := pairsOf("\t", body, nearest)
		assert.ErrorContains(t, err, expected)
	}
	d := declaration{name: "F", text: "func F(p []float32) {\n\tfor i := range p {\n\t\t*at(p, i) = x\n\t}\n}"}
	_, err := d.inHalves(false, nearest)
	assert.ErrorContains(t, err, "F: a buffer is used outside of a loop over all elements")
}
