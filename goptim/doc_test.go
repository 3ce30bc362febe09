//go:build !js

package goptim_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestDocsExampleInANewModule goes a new user's path: an empty module that requires this one, and doc.go's example in it.
func TestDocsExampleInANewModule(t *testing.T) {
	if testing.Short() {
		t.Skip("does not depend on the width of vectors")
	}
	checkout, err := filepath.Abs("..")
	require.NoError(t, err)
	doc, err := os.ReadFile("doc.go")
	require.NoError(t, err)
	lines := regexp.MustCompile(`(?m)^//\t(.*)$`).FindAllStringSubmatch(string(doc), -1)
	require.NotEmpty(t, lines)
	var example strings.Builder
	for _, line := range lines {
		example.WriteString("\t" + strings.ReplaceAll(line[1], "{ … }", "{ panic(err) }") + "\n")
	}
	module := t.TempDir()
	program := `package main

import (
	"fmt"

	"github.com/goptim/goptim/goptim"
)

func backward(value, grad []float32) {
	for i, v := range value {
		grad[i] = v - 3
	}
}

func main() {
	weights, steps := make([]float32, 4), 3
` + example.String() + `	fmt.Println(weights)
}
`
	require.NoError(t, os.WriteFile(filepath.Join(module, "main.go"), []byte(program), 0o600))
	var out []byte
	for _, arguments := range []string{
		"mod init example.com/fit",
		"mod edit -require=github.com/goptim/goptim@v0.0.0 -replace=github.com/goptim/goptim=" + checkout,
		"mod tidy",
		"run .",
	} {
		command := exec.Command("go", strings.Split(arguments, " ")...)
		command.Dir = module
		command.Env = append(os.Environ(), "GOFLAGS=", "GOOS=", "GOARCH=")
		out, err = command.Output()
		require.NoError(t, err, "go %s: %v\n%s", arguments, err, program)
	}
	assert.Equal(t, "[0.00089999445 0.00089999445 0.00089999445 0.00089999445]\n", string(out)) // torch's
}
