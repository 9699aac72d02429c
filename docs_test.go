package main

import (
	"go/ast"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
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

// TestDocsNameCommandsThatExist holds what people copy to the program: every
// command in README, docs, the template and the examples of --help, with its
// flags and variables.
func TestDocsNameCommandsThatExist(t *testing.T) {
	flags, variables := map[string][]string{}, map[string]bool{}
	for _, v := range []string{"NIXFLEET_HOST", "NIXFLEET_PATH", "NIXFLEET_CLOSURE_HASH", "NIXFLEET_INPUT", "NIXFLEET_OUTPUT", "NIXFLEET_TAGS"} {
		variables[v] = true // of hooks and probes
	}
	examples := map[string]string{}
	walk(application().Commands, "nixfleet", func(path string, c *cli.Command) {
		flags[path] = []string{"help"}
		for _, f := range c.Flags {
			flags[path] = append(flags[path], f.Names()...)
			if doc, ok := f.(cli.DocGenerationFlag); ok {
				for _, v := range doc.GetEnvVars() {
					variables[v] = true
				}
			}
		}
		_, examples[path+" --help"], _ = strings.Cut(c.Description, "Example:")
	})
	pages, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range append(pages, "README.md", "nixops/template/fleet/README.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		examples[page] = code(string(text))
	}
	command := regexp.MustCompile(`(?:^|[\s(|])nixfleet((?: [a-z][a-z-]*)+)([^\n|;#]*)`)
	flag := regexp.MustCompile(`\s--([a-z][a-z-]*)`)
	quoted := regexp.MustCompile(`'[^']*'|"[^"]*"`) // a hook, or another program's command
	variable := regexp.MustCompile(`NIXFLEET_[A-Z_]+[A-Z]`)
	seen := 0
	for where, text := range examples {
		text = strings.ReplaceAll(text, "\\\n", " ")
		for _, m := range command.FindAllStringSubmatch(text, -1) {
			path, rest := "nixfleet", m[2]
			for _, word := range strings.Fields(m[1]) {
				if _, ok := flags[path+" "+word]; !ok {
					break
				}
				path += " " + word
			}
			if path == "nixfleet" {
				t.Errorf("%s: there is no command %q", where, "nixfleet"+m[1])
				continue
			}
			seen++
			for _, f := range flag.FindAllStringSubmatch(quoted.ReplaceAllString(rest, ""), -1) {
				if !slices.Contains(flags[path], f[1]) {
					t.Errorf("%s: %s has no flag --%s", where, path, f[1])
				}
			}
		}
		for _, v := range variable.FindAllString(text, -1) {
			if ours := strings.HasPrefix(v, "NIXFLEET_TEST_") || strings.HasPrefix(v, "NIXFLEET_SIM_"); !variables[v] && !ours {
				t.Errorf("%s: no flag has the variable %s", where, v)
			}
		}
	}
	if seen < 80 {
		t.Errorf("found %d commands in docs", seen)
	}
}

// code is what a page sets in fixed width: blocks, and spans on lines of their own.
func code(page string) string {
	var b strings.Builder
	fenced := false
	for line := range strings.Lines(page) {
		switch {
		case strings.HasPrefix(line, "```"):
			fenced = !fenced
		case fenced || strings.HasPrefix(line, "    "):
			b.WriteString(line)
		default:
			for i, span := range strings.Split(line, "`") {
				if i%2 == 1 {
					b.WriteString(span + "\n")
				}
			}
		}
	}
	return b.String()
}

// Reason codes are stable words, listed in docs (contracts/additions.md §5), and
// so are the kinds of events.
func TestReasonsAreListed(t *testing.T) {
	source, err := os.ReadFile("roles/rollout/reasons.go")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile("docs/reasons.md")
	if err != nil {
		t.Fatal(err)
	}
	declared := regexp.MustCompile(`(?m)^\t(?:Code|Event)\w+\s*= "([a-z-]+)"`).FindAllSubmatch(source, -1)
	if len(declared) < 50 {
		t.Fatalf("found %d codes and kinds in reasons.go", len(declared))
	}
	for _, m := range declared {
		if word := "`" + string(m[1]) + "`"; !strings.Contains(string(doc), word) {
			t.Errorf("docs/reasons.md does not list %s", word)
		}
	}
}
