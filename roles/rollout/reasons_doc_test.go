package rollout

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// Reason codes are stable words, listed in docs (contracts/additions.md §5), and
// so are the kinds of events.
func TestReasonsAreListed(t *testing.T) {
	source, err := os.ReadFile("reasons.go")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile("../../docs/reasons.md")
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
