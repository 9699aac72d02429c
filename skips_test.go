package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// scriptSkip is how a script is skipped.
var scriptSkip = regexp.MustCompile(`(?m)\] skip '(.*)'$`)

// TestSkipsAreNamed wants a row of .ci/leftout.tsv for the words of every skip, so that `.ci/run tests` can say which
// command has the test, and no row that no skip uses.
func TestSkipsAreNamed(t *testing.T) {
	text, err := os.ReadFile(".ci/leftout.tsv")
	if err != nil {
		t.Fatal(err)
	}
	var rows []*regexp.Regexp
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		cells := strings.Split(strings.TrimRight(line, "\n"), "\t")
		if len(cells) != 3 {
			t.Fatalf("%q does not have three cells", line)
		}
		rows = append(rows, regexp.MustCompile(cells[0]))
	}
	used := map[*regexp.Regexp]bool{}
	for place, words := range skips(t) {
		named := false
		for _, row := range rows {
			if row.MatchString(words) {
				used[row], named = true, true
				break
			}
		}
		if !named {
			t.Errorf("%s: no row of .ci/leftout.tsv is for %q: add what it lacks and the command that has it", place, words)
		}
	}
	for _, row := range rows {
		if !used[row] {
			t.Errorf("no skip takes the row %s of .ci/leftout.tsv: delete it", row)
		}
	}
}

// skips are the words of all skips, by their place.
func skips(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(".", func(path string, d os.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && d.Name() == ".git":
			return filepath.SkipDir
		case strings.HasSuffix(path, ".txtar"):
			text, err := os.ReadFile(path)
			for _, m := range scriptSkip.FindAllSubmatch(text, -1) {
				found[path+": "+string(m[1])] = string(m[1])
			}
			return err
		case !strings.HasSuffix(path, ".go"):
			return nil
		}
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) == 0 {
				return true
			}
			f, ok := call.Fun.(*ast.SelectorExpr)
			if !ok || f.Sel.Name != "Skip" && f.Sel.Name != "Skipf" {
				return true
			}
			if words, ok := call.Args[0].(*ast.BasicLit); ok && words.Kind == token.STRING {
				text, err := strconv.Unquote(words.Value)
				if err != nil {
					t.Fatal(err)
				}
				found[fset.Position(call.Pos()).String()] = text
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
