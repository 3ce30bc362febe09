// Godoc prints the documentation of the Go packages in some folders as JSON, with Markdown for text.
//
//	go run ./docs/site/godoc FOLDER...
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/build"
	"go/doc"
	"go/doc/comment"
	"go/format"
	"go/parser"
	"go/printer"
	"go/token"
	"os"
	"path"
	"path/filepath"
	"strings"
)

const module = "github.com/goptim/goptim/"

// Package has the exported names of a package.
type Package struct {
	Name, Path, Doc string
	Examples        []Example
	Values, Funcs   []Item
	Types           []Type
}

// Item is a function, a method, or a group of constants or variables.
type Item struct {
	Name     string   // of a method with its type; of a group, that of its first member
	Names    []string // of the members of a group
	Decl     string
	Doc      string
	Examples []Example
}

// Type has the values and functions that belong to it.
type Type struct {
	Item
	Values, Funcs, Methods []Item
}

// Example is a test of go test.
type Example struct {
	Suffix  string
	Doc     string
	Code    string // the body of the function
	Program string // with its imports and the functions that it calls, if they are in the same file
	Output  string
}

func main() {
	packages := []Package{}
	for _, folder := range os.Args[1:] {
		p, err := read(folder)
		if err != nil {
			fmt.Fprintf(os.Stderr, "godoc: %s: %v\n", folder, err)
			os.Exit(1)
		}
		packages = append(packages, p)
	}
	if err := json.NewEncoder(os.Stdout).Encode(packages); err != nil {
		fmt.Fprintln(os.Stderr, "godoc:", err)
		os.Exit(1)
	}
}

func read(folder string) (Package, error) {
	found, err := build.ImportDir(folder, 0)
	if err != nil {
		return Package{}, err
	}
	r := reader{fset: token.NewFileSet()}
	var files []*ast.File
	for _, names := range [][]string{found.GoFiles, found.TestGoFiles, found.XTestGoFiles} {
		for _, name := range names {
			f, err := parser.ParseFile(r.fset, filepath.Join(folder, name), nil, parser.ParseComments)
			if err != nil {
				return Package{}, err
			}
			files = append(files, f)
		}
	}
	if r.pkg, err = doc.NewFromFiles(r.fset, files, path.Join(module, filepath.ToSlash(folder))); err != nil {
		return Package{}, err
	}
	p := Package{
		Name: r.pkg.Name, Path: r.pkg.ImportPath, Doc: r.markdown(r.pkg.Doc), Examples: r.examples(r.pkg.Examples),
		Values: r.values(r.pkg.Consts, r.pkg.Vars), Funcs: r.funcs(r.pkg.Funcs),
	}
	for _, t := range r.pkg.Types {
		item := Item{Name: t.Name, Decl: r.source(t.Decl), Doc: r.markdown(t.Doc), Examples: r.examples(t.Examples)}
		p.Types = append(p.Types, Type{item, r.values(t.Consts, t.Vars), r.funcs(t.Funcs), r.funcs(t.Methods)})
	}
	return p, nil
}

type reader struct {
	fset *token.FileSet
	pkg  *doc.Package
}

func (r *reader) source(node any) string {
	var b bytes.Buffer
	if err := format.Node(&b, r.fset, node); err != nil {
		panic(err)
	}
	return b.String()
}

// markdown converts a comment. A link to a name of this package is an anchor, as in "#go.goptim.NewSGD".
func (r *reader) markdown(text string) string {
	p := r.pkg.Printer()
	p.HeadingLevel = 2
	p.HeadingID = func(*comment.Heading) string { return "" }
	p.DocLinkURL = func(link *comment.DocLink) string {
		switch {
		case link.ImportPath != "":
			return link.DefaultURL("https://pkg.go.dev")
		case link.Recv != "":
			return fmt.Sprintf("#go.%s.%s.%s", r.pkg.Name, link.Recv, link.Name)
		}
		return fmt.Sprintf("#go.%s.%s", r.pkg.Name, link.Name)
	}
	return string(p.Markdown(r.pkg.Parser().Parse(text)))
}

func (r *reader) values(groups ...[]*doc.Value) []Item {
	items := []Item{}
	for _, group := range groups {
		for _, v := range group {
			items = append(items, Item{Name: v.Names[0], Names: v.Names, Decl: r.source(v.Decl), Doc: r.markdown(v.Doc)})
		}
	}
	return items
}

func (r *reader) funcs(all []*doc.Func) []Item {
	items := []Item{}
	for _, f := range all {
		name := f.Name
		if f.Recv != "" {
			recv, _, _ := strings.Cut(strings.TrimPrefix(f.Recv, "*"), "[")
			name = recv + "." + name
		}
		items = append(items, Item{Name: name, Decl: r.source(f.Decl), Doc: r.markdown(f.Doc), Examples: r.examples(f.Examples)})
	}
	return items
}

func (r *reader) examples(all []*doc.Example) []Example {
	examples := []Example{}
	for _, e := range all {
		x := Example{Suffix: e.Suffix, Doc: r.markdown(e.Doc), Output: strings.TrimSpace(e.Output)}
		code := r.source(&printer.CommentedNode{Node: e.Code, Comments: e.Comments})
		code = strings.TrimSuffix(strings.TrimPrefix(code, "{"), "}")
		x.Code = strings.TrimSpace(strings.ReplaceAll(code, "\n\t", "\n"))
		if e.Play != nil {
			x.Program = r.source(e.Play)
		}
		examples = append(examples, x)
	}
	return examples
}
