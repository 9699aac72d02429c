package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

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
	if len(required) < 30 {
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
