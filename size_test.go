package main

import (
	"fmt"
	"go/ast"
	"go/scanner"
	"go/token"
	"go/types"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// How large a thing of product code may be. `.ci/run complexity` adds that no function
// may be harder to read than gocognit's 25.
const (
	mostFields  = 15  // of a struct
	mostMethods = 40  // of a type, and functions of its package that take it first
	mostLines   = 80  // of a function
	longestFile = 400 // lines
	widestLine  = 120 // characters, a tab counts as one
)

// Offenders are what is larger today. These lists may only shrink: whoever makes a
// thing smaller deletes its line, and a line that is not needed any more fails the
// test, as does an offender that has no line. The format of a name is the directory, a
// dot and the type (`roles/cp.server`), the method (`roles/cp.server.events`) or the
// function (`roles/agent.Command`); files go by their path.
var offenders = struct{ fields, methods, functions, files, lines []string }{
	fields:    []string{},
	methods:   []string{},
	functions: []string{},
	files:     []string{},
	lines:     []string{},
}

// wide are structs that may have many fields, each with the reason: a format decides
// how many members a document has, not we.
var wide = map[string]string{
	"nixops/fleet.Head":             "a signed document",
	"nixops/testnix.Spec":           "the configuration of a test closure",
	"roles/agent.Config":            "configuration",
	"roles/agent/journal.Journal":   "a document on disk",
	"roles/cp.Config":               "configuration",
	"roles/protocol.CheckinRequest": "a document of the wire",
	"roles/protocol.HostEntry":      "an answer of the API",
	"roles/rollout.Dispatch":        "a row of SQL",
}

func TestStructsHaveFewFields(t *testing.T) {
	var found []string
	named, used := map[ast.Expr]bool{}, map[string]bool{}
	inspect(t, func(p *typed, n ast.Node) {
		switch n := n.(type) {
		case *ast.TypeSpec:
			named[n.Type] = true
			name := p.dir + "." + n.Name.Name
			switch many := fields(p.info.TypeOf(n.Type)); {
			case many > mostFields && wide[name] != "":
				used[name] = true
			case many > mostFields:
				found = append(found, name)
				t.Logf("%s: %s has %d fields", p.place(n), name, many)
			}
		case *ast.StructType:
			if many := fields(p.info.TypeOf(n)); many > mostFields && !named[n] {
				t.Errorf("%s: a struct without a name has %d fields, %d are allowed", p.place(n), many, mostFields)
			}
		}
	})
	shrinks(t, offenders.fields, found, fmt.Sprintf("has more than %d fields", mostFields))
	for name := range wide {
		if !used[name] {
			t.Errorf("%s is not wide any more: delete its line in `wide`", name)
		}
	}
}

// fields counts the fields of a struct, and is zero for what is not a struct.
func fields(t types.Type) int {
	if s, ok := t.Underlying().(*types.Struct); ok {
		return s.NumFields()
	}
	return 0
}

// TestNoStructCarriesAnothersFields: a struct that is only embedded, and whose name
// stands nowhere else but in literals and before its own methods, is a part of the one
// that embeds it and no thing of its own.
func TestNoStructCarriesAnothersFields(t *testing.T) {
	carried, aside := map[*types.TypeName]string{}, map[*ast.Ident]bool{}
	inspect(t, func(p *typed, n ast.Node) {
		switch n := n.(type) {
		case *ast.StructType:
			for _, field := range n.Fields.List {
				owner := typeName(p.info.TypeOf(field.Type))
				if len(field.Names) > 0 || !ours(owner) || fields(owner.Type()) == 0 {
					continue
				}
				carried[owner] = p.place(field)
				markNames(field.Type, aside)
			}
		case *ast.FuncDecl:
			if n.Recv != nil {
				markNames(n.Recv.List[0].Type, aside)
			}
		case *ast.CompositeLit:
			if _, plain := n.Type.(*ast.Ident); plain {
				markNames(n.Type, aside)
			}
		}
	})
	for _, p := range house(t) {
		for name, object := range p.info.Uses {
			if owner, ok := object.(*types.TypeName); ok && !aside[name] {
				delete(carried, owner)
			}
		}
	}
	for owner, place := range carried {
		if !owner.Exported() {
			t.Errorf("%s: %s only carries fields of the struct that embeds it", place, owner.Name())
		}
	}
}

// markNames notes the identifiers of a type expression.
func markNames(e ast.Expr, noted map[*ast.Ident]bool) {
	ast.Inspect(e, func(n ast.Node) bool {
		if name, ok := n.(*ast.Ident); ok {
			noted[name] = true
		}
		return true
	})
}

// inspect visits every node of the product code, outer ones first.
func inspect(t *testing.T, visit func(p *typed, n ast.Node)) {
	t.Helper()
	for _, p := range house(t) {
		for _, file := range p.syntax {
			ast.Inspect(file, func(n ast.Node) bool {
				if n != nil {
					visit(p, n)
				}
				return true
			})
		}
	}
}

func TestTypesHaveFewMethods(t *testing.T) {
	count := map[string]int{}
	for _, p := range house(t) {
		for _, object := range p.info.Defs {
			f, ok := object.(*types.Func)
			if !ok {
				continue
			}
			if owner := ownerOf(f); ours(owner) && owner.Pkg() == f.Pkg() {
				count[p.dir+"."+owner.Name()]++
			}
		}
	}
	var found []string
	for name, n := range count {
		if n > mostMethods {
			found = append(found, name)
			t.Logf("%s has %d methods", name, n)
		}
	}
	shrinks(t, offenders.methods, found, fmt.Sprintf("has more than %d methods", mostMethods))
}

// ownerOf is the type that a function belongs to: its receiver's, or that of its first
// parameter. A context does not count as the first.
func ownerOf(f *types.Func) *types.TypeName {
	signature := f.Signature()
	if signature.Recv() != nil {
		return typeName(signature.Recv().Type())
	}
	for v := range signature.Params().Variables() {
		if name := typeName(v.Type()); name == nil || name.Pkg() == nil || name.Pkg().Path() != "context" {
			return name
		}
	}
	return nil
}

// typeName is the declaration of a type or of what it points to; nil for one that has
// no name.
func typeName(t types.Type) *types.TypeName {
	if pointer, ok := t.(*types.Pointer); ok {
		t = pointer.Elem()
	}
	if named, ok := t.(*types.Named); ok {
		return named.Obj()
	}
	return nil
}

// ours tells whether a type is declared in this module.
func ours(name *types.TypeName) bool {
	return name != nil && name.Pkg() != nil &&
		(name.Pkg().Path() == "nixfleet" || strings.HasPrefix(name.Pkg().Path(), "nixfleet/"))
}

func TestFunctionsAreShort(t *testing.T) {
	var found []string
	inspect(t, func(p *typed, n ast.Node) {
		f, ok := n.(*ast.FuncDecl)
		if !ok {
			return
		}
		if lines := p.files.Position(f.End()).Line - p.files.Position(f.Pos()).Line + 1; lines > mostLines {
			name := p.dir + "." + p.symbol(f)
			found = append(found, name)
			t.Logf("%s: %s has %d lines", p.place(f), name, lines)
		}
	})
	shrinks(t, offenders.functions, found, fmt.Sprintf("has more than %d lines", mostLines))
}

// symbol names a declared function as its callers would: its receiver's type, then its own name.
func (p *typed) symbol(f *ast.FuncDecl) string {
	if f.Recv == nil {
		return f.Name.Name
	}
	object, ok := p.info.Defs[f.Name].(*types.Func)
	if !ok {
		return f.Name.Name
	}
	if owner := ownerOf(object); owner != nil {
		return owner.Name() + "." + f.Name.Name
	}
	return f.Name.Name
}

func TestFilesAreShort(t *testing.T) {
	var found []string
	for _, p := range house(t) {
		for _, file := range p.syntax {
			end := p.files.Position(file.FileEnd)
			if name := path.Join(p.dir, filepath.Base(end.Filename)); end.Line > longestFile {
				found = append(found, name)
				t.Logf("%s has %d lines", name, end.Line)
			}
		}
	}
	shrinks(t, offenders.files, found, fmt.Sprintf("has more than %d lines", longestFile))
}

// TestLinesAreNarrow is about tests as well. A line of a raw string stays as it is.
func TestLinesAreNarrow(t *testing.T) {
	count := map[string]int{}
	sources(t, func(file string, _ *ast.File) {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		raw := rawLines(source)
		for i, line := range strings.Split(string(source), "\n") {
			if utf8.RuneCountInString(line) > widestLine && !raw[i+1] {
				count[file]++
			}
		}
	})
	for file, n := range count {
		t.Logf("%s: %d lines have more than %d characters", file, n, widestLine)
	}
	shrinks(t, offenders.lines, slices.Collect(maps.Keys(count)),
		fmt.Sprintf("has lines of more than %d characters", widestLine))
}

// rawLines are the lines on which there is a part of a raw string, which cannot be broken.
// The tag of a field does not count.
func rawLines(source []byte) map[int]bool {
	files, lines := token.NewFileSet(), map[int]bool{}
	file := files.AddFile("", files.Base(), len(source))
	var s scanner.Scanner
	s.Init(file, source, nil, 0)
	for {
		at, kind, literal := s.Scan()
		switch {
		case kind == token.EOF:
			return lines
		case kind == token.STRING && literal[0] == '`' && !strings.HasPrefix(literal, "`json:"):
			for n := file.Line(at); n <= file.Line(at+token.Pos(len(literal)-1)); n++ {
				lines[n] = true
			}
		}
	}
}

// shrinks compares what breaks a law with what is known to.
func shrinks(t *testing.T, known, found []string, what string) {
	t.Helper()
	for _, name := range found {
		if !slices.Contains(known, name) {
			t.Errorf("%s %s", name, what)
		}
	}
	for _, name := range known {
		if !slices.Contains(found, name) {
			t.Errorf("%s is within the law now: delete its line from the offenders", name)
		}
	}
}
