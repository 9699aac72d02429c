package demo

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"nixfleet/roles/command"
	"nixfleet/roles/protocol"
)

// The table never takes more lines than the terminal has, or it could not be
// wiped; hosts under way are shown before those that have arrived.
func TestDemoTableFitsTheTerminal(t *testing.T) {
	for _, size := range []struct{ columns, lines int }{{80, 24}, {40, 12}, {200, 60}} {
		var out bytes.Buffer
		v := &view{View: command.LiveView(&out, func() (int, int) { return size.columns, size.lines }, false)}
		release, now := "x-1", "Dispatched"
		var hosts []protocol.HostEntry
		for i := range 50 {
			h := protocol.HostEntry{Hostname: fmt.Sprintf("web-%02d", i), Channel: "stable", CurrentClosureHash: &release,
				DeclaredClosureHash: &release, Converged: true}
			if i == 49 {
				h.Converged, h.RolloutState = false, &now
			}
			hosts = append(hosts, h)
		}
		v.show(hosts)
		if printed := strings.Count(out.String(), "\n"); size.columns >= 80 && printed != v.Below() {
			t.Errorf("%v: %d lines are to be wiped, %d were printed", size, v.Below(), printed)
		}
		if v.Below() >= size.lines && size.columns >= 80 {
			t.Errorf("%v: a table of %d lines", size, v.Below())
		}
		if !strings.Contains(out.String(), "web-49") {
			t.Errorf("%v: the host under way is not shown", size)
		}
		if hidden := strings.Contains(out.String(), "of them as declared"); hidden != (size.lines < 50) {
			t.Errorf("%v: hosts left out: %t\n%s", size, hidden, out.String())
		}
	}
}
