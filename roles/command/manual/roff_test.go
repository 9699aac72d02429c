package manual

import (
	"os/exec"
	"strings"
	"testing"
)

// TestBodyShowsWhatMarkdownSays reads what groff makes of Markdown, as man shows it.
func TestBodyShowsWhatMarkdownSays(t *testing.T) {
	groff, err := exec.LookPath("groff")
	if err != nil {
		t.Skip("groff is not installed")
	}
	const markdown = "# Title\n\n## One `part`\nSee [the other page](other.md) of `a.b`,\n.so /etc/passwd\n\n" +
		"'tis no request, and \\fB is text.\n\n- first,\n  still first\n- second\n\n" +
		"| Code | Who | What |\n|---|---|---|\n| `a\\|b` | agent | it waits |\n\n    nixfleet status --json\n\n" +
		"```\n.TH\n```\n"
	roff := exec.CommandContext(t.Context(), groff, "-man", "-Tascii", "-P-cbou", "-ww")
	roff.Stdin = strings.NewReader(header("page", 7, "1", "what it is") + body(markdown))
	var complaints strings.Builder
	roff.Stderr = &complaints
	out, err := roff.Output()
	if err != nil || complaints.Len() > 0 {
		t.Fatalf("%v: %s", err, complaints.String())
	}
	shown := strings.Join(strings.Fields(string(out)), " ")
	for _, want := range []string{
		"NAME page - what it is", "ONE PART See the other page of a.b, .so /etc/passwd", `'tis no request, and \fB is text.`,
		"first, still first", "a|b Who: agent What: it waits", "nixfleet status --json", ".TH",
	} {
		if !strings.Contains(shown, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
}
