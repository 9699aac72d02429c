package protocol

import (
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"strings"
	"testing"
)

// declaredCauses reads the constants of type Cause from the source.
func declaredCauses(t *testing.T) []Cause {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "cause.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var all []Cause
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if typ, ok := spec.Type.(*ast.Ident); ok && typ.Name == "Cause" {
			word, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, Cause(word))
		}
		return true
	})
	return all
}

// Every cause that is declared has exactly one row that says whom it blames, and no row is left over.
func TestEveryCauseHasARow(t *testing.T) {
	declared := declaredCauses(t)
	if len(declared) != len(causes) {
		t.Errorf("%d causes are declared and %d have a row", len(declared), len(causes))
	}
	rows := map[Cause]int{}
	for _, row := range causes {
		rows[row.cause]++
	}
	for _, c := range declared {
		if rows[c] != 1 {
			t.Errorf("cause %q has %d rows", c, rows[c])
		}
	}
}

// What With makes SplitCause reads, whatever the text, and no cause begins as another one does.
func TestCausesSplit(t *testing.T) {
	for _, c := range Causes() {
		for _, text := range []string{"x", "preflight: y", "", "lock-held: switch: z", ": ", "\n"} {
			if got, rest := SplitCause(c.With(text)); got != c || rest != text {
				t.Errorf("%q gives %q with %q", c.With(text), got, rest)
			}
		}
		if got, rest := SplitCause(string(c)); got != c || rest != "" {
			t.Errorf("%q gives %q with %q", c, got, rest)
		}
		for _, other := range Causes() {
			if c != other && strings.HasPrefix(string(c), string(other)) {
				t.Errorf("%q begins as %q does", c, other)
			}
		}
	}
	for text, want := range map[string]Cause{
		"":                        "",
		"post-switch mismatch":    "",
		"switch-poll-timeout":     CauseSwitch,
		"realise-failed":          CauseRealise,
		"a preflight: of another": "",
		"Preflight: shouted":      "",
	} {
		if got, _ := SplitCause(text); got != want {
			t.Errorf("%q gives %q, want %q", text, got, want)
		}
	}
	if got := Cause("made up").Blame(); got != BlameRelease {
		t.Errorf("an unknown cause blames %d", got)
	}
}

func TestHeldQuarantined(t *testing.T) {
	for held, want := range map[string]struct {
		closure string
		ok      bool
	}{
		HeldQuarantined("abc-system"):    {"abc-system", true},
		"quarantined":                    {"", true},
		"paused by root: quarantined it": {"", false},
		"":                               {"", false},
	} {
		if closure, ok := QuarantinedIn(held); closure != want.closure || ok != want.ok {
			t.Errorf("%q gives %q, %t", held, closure, ok)
		}
	}
}
