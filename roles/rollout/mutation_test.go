package rollout

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// caught stops a walk at its first violated invariant.
type caught struct {
	testing.TB
}

func (caught) Helper() {}

func (caught) Fatalf(format string, args ...any) { panic(violation(fmt.Sprintf(format, args...))) }

type violation string

// TestWalkCatchesMissingGates takes gates away one by one: the walk must notice each within a bounded number of
// seeds, or it proves nothing.
func TestWalkCatchesMissingGates(t *testing.T) {
	whole := gates
	defer func() { gates = whole }()
	for _, names := range [][]string{{"budget"}, {"wave"}, {"operator"}, {"halt"}, {"soak", "health"}, {"wave-soak"},
		{"lease"}} {
		name := strings.Join(names, " and ")
		gates = slices.DeleteFunc(slices.Clone(whole), func(g gate) bool { return slices.Contains(names, g.name) })
		found := ""
		seed := uint64(1)
		for ; seed <= 60 && found == ""; seed++ {
			func() {
				defer func() {
					switch v := recover().(type) {
					case nil:
					case violation:
						found = string(v)
					default:
						found = fmt.Sprint(v)
					}
				}()
				newWalk(caught{t}, seed).run(400)
			}()
		}
		if found == "" {
			t.Errorf("without the gate %s nothing is noticed", name)
		} else {
			t.Logf("without %s, seed %d: %s", name, seed-1, found)
		}
	}
}

// The same inputs give the same decisions, in the same order.
func TestDeterminism(t *testing.T) {
	for seed := uint64(1); seed <= 10; seed++ {
		a, b := newWalk(t, seed), newWalk(t, seed)
		a.run(300)
		b.run(300)
		if !reflect.DeepEqual(a.disk, b.disk) {
			t.Fatalf("seed %d: two runs differ", seed)
		}
	}
}
