package nixops

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// A host is changed by the closure's own script and by commands of Nix whose form
// has not changed for years. What evaluates and builds belongs to CI alone.
func TestOnlyStableCommands_A21(t *testing.T) {
	used := map[string]bool{}
	for _, dir := range []string{".", "../roles/agent"} {
		files, err := filepath.Glob(dir + "/*.go")
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			parsed, err := parser.ParseFile(token.NewFileSet(), file, text, 0)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(parsed, func(n ast.Node) bool {
				literal, ok := n.(*ast.BasicLit)
				if !ok || literal.Kind != token.STRING {
					return true
				}
				word, err := strconv.Unquote(literal.Value)
				if err != nil {
					return true
				}
				if word == "nix" || strings.HasPrefix(word, "nix-") && !strings.Contains(word, " ") ||
					strings.HasPrefix(word, "nixos-") {
					used[filepath.Base(file)+" "+word] = true
				}
				return true
			})
		}
	}
	stable := []string{"nix-store", "nix-env", "nix-command", "nix-bin-dir", "nix-conf-dir", "nixos-version"}
	for use := range used {
		file, word, _ := strings.Cut(use, " ")
		if !slices.Contains(stable, word) &&
			!(word == "nix" && slices.Contains([]string{"ci.go", "ci_declare.go", "ci_delivery.go", "ci_wanted.go", "nix.go",
				"command.go"}, file)) {
			t.Errorf("%s uses %q", file, word)
		}
	}
	if !used["realhost.go nix-env"] {
		t.Errorf("the profile is not set by nix-env any more; is this test looking at the right place? %v", used)
	}
}
