package rollout

import (
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strconv"
	"testing"
	"time"
)

// withGate adds a gate at the end of the table for one test.
func withGate(t *testing.T, g gate) {
	t.Helper()
	all := gates
	gates = append(slices.Clone(all), g)
	t.Cleanup(func() { gates = all })
}

// A gate that says when it opens is enough: whoever it holds is looked at again then, without a line anywhere else.
func TestNewGateIsItsOwnAlarmClock(t *testing.T) {
	opens := epoch.Add(3 * time.Hour)
	until := func(s subject) *hold {
		if s.now.Before(opens) {
			return &hold{code: CodeStale, gate: "window", opens: momentOf(opens)}
		}
		return nil
	}
	// present has every host wait in a held request, so that nothing but a wake-up asks for it.
	present := func(b *bench, hosts ...string) {
		for _, h := range hosts {
			b.box(h).wait = 24 * time.Hour
		}
	}
	wakes := func(t *testing.T, b *bench, h string) {
		t.Helper()
		before := b.wakeups[h]
		for {
			c, next := b.w.Tick(b.now)
			b.took(c)
			if b.wakeups[h] > before {
				break
			}
			if next.IsZero() || next.After(opens.Add(time.Minute)) {
				t.Fatalf("nothing wakes %s by %s; the next tick is due at %s", h, opens, next)
			}
			b.now = next
		}
		if b.now.Before(opens) {
			t.Fatalf("%s is woken at %s, before the gate opens", h, b.now)
		}
		b.offered(h)
	}
	t.Run("offer, asked by a check-in", func(t *testing.T) {
		withGate(t, gate{"window", offer, until})
		b := start(t, single("s", one(time.Minute, "a", "new-a")))
		b.box("a").wait = 24 * time.Hour
		b.refused("a", CodeStale)
		wakes(t, b, "a")
	})
	t.Run("offer, after a failed attempt", func(t *testing.T) {
		b := start(t, single("s", one(time.Minute, "a", "new-a")))
		present(b, "a")
		b.offered("a")
		withGate(t, gate{"window", offer, until})
		b.report("a", Report{Event: "realise-failed", Reason: "realise: no"})
		b.pass(time.Hour) // its own pause is over
		wakes(t, b, "a")
	})
	t.Run("offer, when a release comes", func(t *testing.T) {
		b := start(t, single("s", one(time.Minute, "a", "old-a")))
		present(b, "a")
		b.checkin("a")
		withGate(t, gate{"window", offer, until})
		next := single("s", one(time.Minute, "a", "new-a"))
		next.signed = b.now.Add(time.Second)
		b.pass(time.Second)
		b.accept(next)
		clear(b.wakeups)
		wakes(t, b, "a")
	})
	t.Run("promote", func(t *testing.T) {
		withGate(t, gate{"window", promote, until})
		b := start(t, single("s", one(0, "a", "new-a"), one(0, "b", "new-b")))
		present(b, "a", "b")
		b.update("a")
		b.refused("b", CodeWave)
		wakes(t, b, "b")
	})
	t.Run("soak", func(t *testing.T) {
		withGate(t, gate{"window", soak, until})
		b := start(t, single("s", one(0, "a", "new-a"), one(0, "b", "new-b")))
		present(b, "a", "b")
		b.update("a")
		b.refused("b", CodeWave)
		wakes(t, b, "b")
	})
}

// Every code that a gate can give has a sentence, and names a gate of the table.
func TestEveryHoldHasASentence(t *testing.T) {
	codes := constants(t, "reasons.go")
	names := map[string]bool{"dispatch": true}
	for _, g := range gates {
		names[g.name] = true
	}
	n := 0
	for _, source := range []string{"gates.go", "hold.go", "budgets.go", "checkin.go"} {
		file, err := parser.ParseFile(token.NewFileSet(), source, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(node ast.Node) bool {
			literal, ok := node.(*ast.CompositeLit)
			if !ok {
				return true
			}
			if typ, ok := literal.Type.(*ast.Ident); !ok || typ.Name != "hold" {
				return true
			}
			n++
			members := map[string]ast.Expr{}
			for _, e := range literal.Elts {
				pair := e.(*ast.KeyValueExpr)
				members[pair.Key.(*ast.Ident).Name] = pair.Value
			}
			code := members["code"].(*ast.Ident).Name
			if sentences[codes[code]] == nil {
				t.Errorf("%s has no sentence", code)
			}
			if gate, err := strconv.Unquote(members["gate"].(*ast.BasicLit).Value); err != nil || !names[gate] {
				t.Errorf("%s is of gate %s, which is not in the table", code, members["gate"].(*ast.BasicLit).Value)
			}
			return true
		})
	}
	if n < 40 {
		t.Errorf("only %d holds were found", n)
	}
}

// constants reads the string constants of a file, by name.
func constants(t *testing.T, name string) map[string]string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	ast.Inspect(file, func(node ast.Node) bool {
		if spec, ok := node.(*ast.ValueSpec); ok && len(spec.Values) == 1 {
			if text, ok := spec.Values[0].(*ast.BasicLit); ok {
				all[spec.Names[0].Name] = text.Value[1 : len(text.Value)-1]
			}
		}
		return true
	})
	return all
}
