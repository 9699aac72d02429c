package main

import (
	"go/ast"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

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
	named := regexp.MustCompile("`(Test[A-Za-z0-9_]+)(?:/[^`]*)?` \\(([a-z0-9/]+)\\)").
		FindAllStringSubmatch(string(page), -1)
	if len(named) < 50 {
		t.Fatalf("only %d tests found in the page; has its form changed?", len(named))
	}
	for _, m := range named {
		if !exists[m[2]+" "+m[1]] {
			t.Errorf("docs/lessons.md names %s in %s, which has no such test", m[1], m[2])
		}
	}
}

// testVariables begin the names of variables that tests read.
var testVariables = []string{"NIXFLEET_TEST_", "NIXFLEET_SIM_", "NIXFLEET_EXPLORE_"}

// TestDocsNameCommandsThatExist holds what people copy to the program: every
// command in README, docs, the template and the examples of --help, with its
// flags and variables.
func TestDocsNameCommandsThatExist(t *testing.T) {
	flags, variables := map[string][]string{}, map[string]bool{}
	for _, v := range []string{"NIXFLEET_HOST", "NIXFLEET_PATH", "NIXFLEET_CLOSURE_HASH", "NIXFLEET_INPUT",
		"NIXFLEET_OUTPUT", "NIXFLEET_TAGS"} {
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
	command := regexp.MustCompile(`(?:^|[\s(|])nixfleet((?: [a-z][a-z0-9-]*)+)([^\n|;#]*)`)
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
			ours := slices.ContainsFunc(testVariables, func(prefix string) bool { return strings.HasPrefix(v, prefix) })
			if !variables[v] && !ours {
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
	kinds, err := os.ReadFile("roles/protocol/states.go")
	if err != nil {
		t.Fatal(err)
	}
	source = append(source, kinds...)
	declared := regexp.MustCompile(`(?m)^\t(?:Code|Log)\w+\s*= "([a-z-]+)"`).FindAllSubmatch(source, -1)
	if len(declared) < 70 {
		t.Fatalf("found %d codes and kinds", len(declared))
	}
	for _, m := range declared {
		if word := "`" + string(m[1]) + "`"; !strings.Contains(string(doc), word) {
			t.Errorf("docs/reasons.md does not list %s", word)
		}
	}
}

// generated are the pages that a test writes.
var generated = []string{"docs/options.md", "docs/texts.md"}

// pages lists what people read: README, docs, and its decisions.
func pages(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, pattern := range []string{"README.md", "docs/*.md", "docs/adr/*.md"} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			found[filepath.ToSlash(name)] = string(text)
		}
	}
	return found
}

// TestPagesAreNarrow: a row of a table cannot be broken, everything else can.
func TestPagesAreNarrow(t *testing.T) {
	for page, text := range pages(t) {
		if slices.Contains(generated, page) {
			continue
		}
		n := 0
		for line := range strings.Lines(text) {
			n++
			if wide := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); wide > widestLine &&
				!strings.HasPrefix(line, "|") {
				t.Errorf("%s:%d has %d characters, %d are allowed", page, n, wide, widestLine)
			}
		}
	}
}

// TestLinksLeadSomewhere: every link of a page to another one, or to a heading, is
// followed, and every page of docs is reached from README.
func TestLinksLeadSomewhere(t *testing.T) {
	all := pages(t)
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	reached := map[string]bool{}
	for page, text := range all {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			name, heading, _ := strings.Cut(m[1], "#")
			target := path.Join(path.Dir(page), name)
			if name == "" {
				target = page
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s links to %s, which is not there", page, m[1])
			}
			if heading != "" && !slices.Contains(headings(all[target]), heading) {
				t.Errorf("%s links to %s, and there is no such heading", page, m[1])
			}
			if page == "README.md" {
				reached[target] = true
			}
		}
	}
	for page := range all {
		if path.Dir(page) == "docs" && !reached[page] {
			t.Errorf("README.md does not lead to %s", page)
		}
	}
}

// headings gives the anchors of a page as forges make them: lower case, without
// punctuation, spaces as hyphens.
func headings(page string) []string {
	var anchors []string
	for line := range strings.Lines(page) {
		if title := strings.TrimLeft(line, "#"); title != line && strings.HasPrefix(title, " ") {
			anchor := regexp.MustCompile(`[^a-z0-9 _-]`).ReplaceAllString(strings.ToLower(strings.TrimSpace(title)), "")
			anchors = append(anchors, strings.ReplaceAll(anchor, " ", "-"))
		}
	}
	return anchors
}

// licences are found by a sentence that each of them has.
var licences = []struct{ name, sentence string }{
	{"Apache-2.0", "Apache License"},
	{"BSD-3-Clause", "Neither the name"},
	{"BSD-2-Clause", "Redistribution and use in source and binary forms"},
	{"MIT", "Permission is hereby granted, free of charge"},
}

// TestDependenciesHaveAReason holds docs/dependencies.md to go.mod, and the licences that it names to those that the
// modules bring.
func TestDependenciesHaveAReason(t *testing.T) {
	mod, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("docs/dependencies.md")
	if err != nil {
		t.Fatal(err)
	}
	stated := map[string]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\| ([^|]+) \\| [^|]+ \\|$").
		FindAllStringSubmatch(string(page), -1) {
		stated[row[1]] = row[2]
	}
	out, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Path}} {{.Dir}}", "all").Output()
	if err != nil {
		t.Fatal(err)
	}
	where := map[string]string{}
	for line := range strings.Lines(string(out)) {
		name, dir, _ := strings.Cut(strings.TrimSpace(line), " ")
		where[name] = dir
	}
	required := regexp.MustCompile(`(?m)^\t(\S+) v\S+`).FindAllStringSubmatch(string(mod), -1)
	for _, m := range required {
		name := m[1]
		licence, ok := stated[name]
		delete(stated, name)
		if !ok {
			t.Errorf("docs/dependencies.md has no row for %s: say why it is here", name)
			continue
		}
		if dir := where[name]; dir != "" && licenceIn(t, dir) != licence {
			t.Errorf("%s is under %s, docs/dependencies.md says %s", name, licenceIn(t, dir), licence)
		}
	}
	for name := range stated {
		t.Errorf("docs/dependencies.md has %s, which go.mod does not have", name)
	}
	if len(required) < 20 {
		t.Errorf("only %d modules found in go.mod; has its form changed?", len(required))
	}
}

// licenceIn is the licence of a module, "" for one that is not known here.
func licenceIn(t *testing.T, dir string) string {
	t.Helper()
	for _, pattern := range []string{"LICEN[CS]E*", "COPYING*"} {
		files, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				continue // a directory
			}
			one := strings.Join(strings.Fields(strings.ReplaceAll(string(text), "> ", "")), " ")
			for _, l := range licences {
				if strings.Contains(one, l.sentence) {
					return l.name
				}
			}
		}
	}
	return ""
}
