package main

import (
	"go/ast"
	"os"
	"path"
	"regexp"
	"strings"
	"testing"
)

// TestLessonsNameTestsThatExist holds docs/lessons.md to the code: a test that
// it names is in the package that it names.
func TestLessonsNameTestsThatExist(t *testing.T) {
	exists := map[string]bool{}
	sources(t, func(file string, parsed *ast.File) {
		for _, decl := range parsed.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil && strings.HasPrefix(f.Name.Name, "Test") {
				exists[path.Dir(file)+" "+f.Name.Name] = true
			}
		}
	})
	page, err := os.ReadFile("docs/lessons.md")
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`(Test[A-Za-z0-9_]+)(?:/[^`]*)?` \\(([a-z0-9/]+)\\)").FindAllStringSubmatch(string(page), -1)
	if len(named) < 50 {
		t.Fatalf("only %d tests found in the page; has its form changed?", len(named))
	}
	for _, m := range named {
		if !exists[m[2]+" "+m[1]] {
			t.Errorf("docs/lessons.md names %s in %s, which has no such test", m[1], m[2])
		}
	}
}
