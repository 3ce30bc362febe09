package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestUpdate(t *testing.T) {
	page := filepath.Join(t.TempDir(), "page.md")
	require.NoError(t, os.WriteFile(page, []byte("a\n<!-- benchmarks/go -update page.md -->\nold\n<!-- end -->\nb\n"), 0o600))
	require.NoError(t, update(page, "new\n"))
	text, err := os.ReadFile(page)
	require.NoError(t, err)
	assert.Equal(t, "a\n<!-- benchmarks/go -update page.md -->\nnew\n<!-- end -->\nb\n", string(text))
	require.NoError(t, os.WriteFile(page, []byte("none"), 0o600))
	assert.Error(t, update(page, "new\n"))
}

func TestTable(t *testing.T) {
	var out bytes.Buffer
	require.NoError(t, table(&out, []int{1000, 70_000}, 1e6))
	assert.Equal(t, 4+2*(2*2*2+2), bytes.Count(out.Bytes(), []byte("\n")), out.String())
}
