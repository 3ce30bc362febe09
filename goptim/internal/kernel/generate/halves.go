package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"regexp"
	"slices"
	"strings"
)

// A kernel whose scalars have its name is copied for bfloat16, except others, which are not the step of an elementwise optimizer.
var others = []string{"Clamp", "Combine", "MuonMomentum", "MuonUpdate"}

var (
	// loops match a loop over all elements, with an indentation of one or two, and its body.
	loops = []*regexp.Regexp{
		regexp.MustCompile(`(?ms)^(\t)for i := 0; i < len\(p\); i \+= lanes \{\n(.*?\n)\t\}\n`),
		regexp.MustCompile(`(?ms)^(\t\t)for i := 0; i < len\(p\); i \+= lanes \{\n(.*?\n)\t\t\}\n`),
	}
	// stored matches a store: its indentation, the buffer and the number. loaded matches a load, after stores are replaced.
	stored = regexp.MustCompile(`(?m)^(\t+)\*at\((\w+), i\) = (.*)$`)
	loaded = regexp.MustCompile(`\*?\bat\(\w+, i\)`)
	// storedParam matches the store of the parameter.
	storedParam = regexp.MustCompile(`(?m)^(\t+)\*at\(p, i\) = (.*)$`)
	// handedOver matches the call of a one-lane copy and what follows it.
	handedOver = regexp.MustCompile(`(?m)^\t\tf32x1\..*\n\t\treturn$`)
	returned   = regexp.MustCompile(`(?m)^(\t+)return$`)
	scalarsOf  = regexp.MustCompile(`^func (\w+)\(h \*kernel\.(\w+), p, g \[\]float32, s \[4\]\[\]float32\) \{`)
	// updates matches the beginning of a function that updates buffers, before and in the comma-separated list of its parameters,
	// and updating the call of one.
	updates  = regexp.MustCompile(`^func (\w)(\w*)\((h \*kernel\.\w+, p[^)]*)\)`)
	updating = regexp.MustCompile(`\b([a-z])(\w*)\((h, p[^)]*)\)`)
)

// inHalves returns the kernels of elementwise optimizers with loads and stores of bfloat16. Declarations of ops replace those with the
// same name. A kernel reports whether it has applied the step: it has not in cases that f32x8 leaves to the one-lane copy.
func (c *code) inHalves(ops *code) (*code, error) {
	declared, err := ops.declarations()
	if err != nil {
		return nil, err
	}
	all, err := c.declarations()
	if err != nil {
		return nil, err
	}
	h := &code{imports: append([]string{`"runtime"`}, c.imports...)}
	used := map[string]bool{}
	for _, d := range all {
		if isKernel(d) {
			h.exported = append(h.exported, d.name)
			used[d.name] = true
		}
	}
	for before := -1; before < len(used); {
		before = len(used)
		for _, d := range all {
			if used[d.name] {
				for _, name := range d.uses {
					used[name] = true
				}
			}
		}
	}
	for _, d := range all {
		if !used[d.name] || slices.ContainsFunc(declared, func(o declaration) bool { return o.name == d.name }) {
			continue
		}
		for _, way := range []rounding{nearest, noisy, kahan} {
			if way != nearest && (!updates.MatchString(d.text) || !isKernel(d) && ast.IsExported(d.name)) {
				continue
			}
			text, err := d.inHalves(isKernel(d), way)
			if err != nil {
				return nil, err
			}
			h.text += text + "\n\n"
		}
	}
	return h, nil
}

func isKernel(d declaration) bool {
	m := scalarsOf.FindStringSubmatch(d.text)
	return m != nil && m[1] == m[2] && !slices.Contains(others, m[1])
}

// A rounding is how the copy of a function stores the parameter.
type rounding struct{ prefix, param string }

// A kernel calls the copies that round with random numbers, or have a compensation, if there are any.
var (
	nearest = rounding{}
	noisy   = rounding{"noisy", "random *kernel.Draws"}
	kahan   = rounding{"kahan", "rest []uint16"}
)

// inHalves returns a function with loops that process pairs of elements, or its copy for a rounding.
func (d *declaration) inHalves(isKernel bool, way rounding) (string, error) {
	var err error
	text, rest := d.text, d.text
	for _, loop := range loops {
		rest = loop.ReplaceAllString(rest, "")
		text = loop.ReplaceAllStringFunc(text, func(whole string) string {
			m := loop.FindStringSubmatch(whole)
			pairs, e := pairsOf(m[1], m[2], way)
			if e != nil {
				err = fmt.Errorf("%s: %w", d.name, e)
			}
			return pairs
		})
	}
	if err == nil && loaded.MatchString(rest) {
		err = fmt.Errorf("%s: a buffer is used outside of a loop over all elements", d.name)
	}
	text = strings.ReplaceAll(text, "[]float32", "[]uint16")
	if isKernel {
		text = handedOver.ReplaceAllString(text, "\t\treturn false")
		text = returned.ReplaceAllString(text, "${1}return true")
		text = strings.Replace(text, ") {", ") bool {", 1)
		text = strings.TrimSuffix(text, "}") + "\treturn true\n}"
	}
	if way != nearest {
		name, _, _ := strings.Cut(way.param, " ")
		text = updating.ReplaceAllStringFunc(updates.ReplaceAllStringFunc(text, func(begin string) string {
			m := updates.FindStringSubmatch(begin)
			return "func " + way.nameOf(m[1], m[2]) + "(" + m[3] + ", " + way.param + ")"
		}), func(call string) string {
			m := updating.FindStringSubmatch(call)
			return way.nameOf(m[1], m[2]) + "(" + m[3] + ", " + name + ")"
		})
	} else if isKernel {
		text = updates.ReplaceAllString(text, "func $1$2($3, "+noisy.param+", "+kahan.param+")")
		first, rest, _ := strings.Cut(text, "\n")
		for _, w := range []rounding{noisy, kahan} {
			name, _, _ := strings.Cut(w.param, " ")
			first += "\n\tif " + name + " != nil {\n\t\treturn " + w.prefix + d.name + "(h, p, g, s, " + name + ")\n\t}"
		}
		text = first + "\n" + rest
	}
	return text, err
}

// nameOf returns the name of a copy, for the name's first letter and the others.
func (r rounding) nameOf(first, others string) string {
	return r.prefix + strings.ToUpper(first) + others
}

// pairsOf returns a loop with the given indentation that runs a body twice. The first body keeps what it would store, and the second
// one stores both. They load from memory separately, because KeepAlive may change it as far as the compiler knows. It has no
// instruction.
//
// A noisy loop adds random numbers to the parameter that it stores. One with a compensation adds it to the parameter that it loads, and
// stores both, even if the body does not change the parameter: another sum may have been written.
func pairsOf(indent, body string, way rounding) (string, error) {
	var names []string
	seen := map[string]bool{}
	for line := range strings.Lines(body) {
		for _, m := range loaded.FindAllString(stored.ReplaceAllString(line, "$3"), -1) {
			if seen[strings.TrimPrefix(m, "*")] {
				return "", fmt.Errorf("%s is loaded after it is stored", m)
			}
		}
		if m := stored.FindStringSubmatch(line); m != nil {
			seen["at("+m[2]+", i)"] = true
			if !slices.Contains(names, m[2]) {
				names = append(names, m[2])
			}
		}
	}
	if strings.Contains(body, "continue") {
		return "", fmt.Errorf("a loop has a continue")
	}
	if way == kahan && !slices.Contains(names, "p") {
		names = append(names, "p")
		body += indent + "\t*at(p, i) = *at(p, i)\n"
	}
	// Conversions are written as methods because a function that loads leaves a NOP.
	load := func(text, method string) string {
		return loaded.ReplaceAllStringFunc(text, func(at string) string {
			at = strings.TrimPrefix(at, "*") + method + ".BitsToFloat32()"
			if way == kahan && strings.HasPrefix(at, "at(p,") {
				at += ".Add(at(rest, i)" + method + ".BitsToFloat32())"
			}
			return at
		})
	}
	first, second, begin, draw := body, body, "", ""
	switch {
	case way == noisy && slices.Contains(names, "p"):
		first = storedParam.ReplaceAllString(first, "${1}pEvens = drawn($2, evens).ShiftAllRight(16)")
		second = storedParam.ReplaceAllString(second, "${1}*AT(p, i) = joinedDrawn(pEvens, $2, odds, k)")
		begin = indent + "var evens, odds bits\n" + indent + "next := vectorOf(&random.Next)\n"
		draw = indent + "\tevens, odds = draw(evens, odds, next, i, random)\n" + indent + "\tnext = next.Add(*advance(random, i))\n"
	case way == kahan:
		first = storedParam.ReplaceAllString(first, "${1}pEvens, restEvens = parted($2, k)")
		second = storedParam.ReplaceAllString(second, "${1}*AT(p, i), *AT(rest, i) = joinedParted(pEvens, restEvens, $2, k)")
		names = append(names, "rest")
	}
	first = load(stored.ReplaceAllString(first, "${1}${2}Evens = rounded($3, k).ShiftAllRight(16)"), ".ShiftAllLeft(16)")
	second = stored.ReplaceAllString(second, "${1}*AT($2, i) = joined(${2}Evens, $3, k)")
	second = strings.ReplaceAll(load(second, ".And(k.upper)"), "AT(", "at(")
	return begin + fmt.Sprintf(`%[1]sk := constants()
%[1]sfor i := 0; i < len(p); i += lanes {
%[5]s%[1]s	var %[2]sEvens bits
%[1]s	{
%[3]s%[1]s	}
%[1]s	runtime.KeepAlive(h)
%[1]s	{
%[4]s%[1]s	}
%[1]s}
`, indent, strings.Join(names, "Evens, "), first, second, draw), nil
}

// A declaration is one of a package, with the names that it uses.
type declaration struct {
	name, text string
	uses       []string
}

// declarations returns the code's declarations. Types in parentheses are separate ones.
func (c *code) declarations() ([]declaration, error) {
	const clause = "package p\n"
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, "", clause+c.text, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	var list []declaration
	add := func(name, before string, n ast.Node) {
		d := declaration{name: name, text: before + (clause + c.text)[files.Position(n.Pos()).Offset:files.Position(n.End()).Offset]}
		ast.Inspect(n, func(n ast.Node) bool {
			if id, ok := n.(*ast.Ident); ok {
				d.uses = append(d.uses, id.Name)
			}
			return true
		})
		list = append(list, d)
	}
	for _, d := range file.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			add(d.Name.Name, "", d)
		case *ast.GenDecl:
			for _, s := range d.Specs {
				switch s := s.(type) {
				case *ast.TypeSpec:
					add(s.Name.Name, "type ", s)
				case *ast.ValueSpec:
					add(s.Names[0].Name, d.Tok.String()+" ", s)
				}
			}
		}
	}
	return list, nil
}
