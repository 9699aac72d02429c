package operator

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"nixfleet/roles/protocol"
)

func TestWrapBreaksAtSpaces(t *testing.T) {
	const width = 30
	for text, want := range map[string]string{
		"short": "short",
		"web-02 waits: the rollout of channel stable stopped":                      "web-02 waits: the rollout of \n  channel stable stopped",
		"a-word-that-is-longer-than-the-whole-line is kept":                        "a-word-that-is-longer-than-the-whole-line \n  is kept",
		"look around with\n  nixfleet status --config /a/long/path/to/config.toml": "look around with\n  nixfleet status --config /a/long/path/to/config.toml",
	} {
		if got := wrap(text, width); got != want {
			t.Errorf("wrapped %q to\n%s\nwant\n%s", text, got, want)
		}
	}
}

// The table never takes more lines than the terminal has, or it could not be
// wiped; who is under way is shown before who has arrived.
func TestDemoTableFitsTheTerminal(t *testing.T) {
	for _, size := range []struct{ columns, lines int }{{80, 24}, {40, 12}, {200, 60}} {
		var out bytes.Buffer
		v := &demoView{w: &out, last: map[string]string{}, live: func() (int, int) { return size.columns, size.lines }}
		release, now := "x-1", "Dispatched"
		var hosts []protocol.HostEntry
		for i := range 50 {
			h := protocol.HostEntry{Hostname: fmt.Sprintf("web-%02d", i), Channel: "stable", CurrentClosureHash: &release, DeclaredClosureHash: &release, Converged: true}
			if i == 49 {
				h.Converged, h.RolloutState = false, &now
			}
			hosts = append(hosts, h)
		}
		v.show(hosts)
		if printed := strings.Count(out.String(), "\n"); size.columns >= 80 && printed != v.below {
			t.Errorf("%v: %d lines are to be wiped, %d were printed", size, v.below, printed)
		}
		if v.below >= size.lines && size.columns >= 80 {
			t.Errorf("%v: a table of %d lines", size, v.below)
		}
		if !strings.Contains(out.String(), "web-49") {
			t.Errorf("%v: the host under way is not shown", size)
		}
		if hidden := strings.Contains(out.String(), "of them as declared"); hidden != (size.lines < 50) {
			t.Errorf("%v: hosts left out: %t\n%s", size, hidden, out.String())
		}
	}
}
