package journal

import (
	"os"
	"path/filepath"
	"testing"

	"nixfleet/roles/protocol"
)

// TestJournalOfAnEarlierBuild reads what build cbeb76d wrote in the middle of an activation,
// and in the middle of an undo: an agent that is replaced by its own switch is always
// followed by one of another build.
func TestJournalOfAnEarlierBuild(t *testing.T) {
	for name, c := range map[string]struct {
		step   Step
		reason Reason
		blame  bool
	}{
		"checking.json": {Checking, Reason{}, false},
		"undoing.json": {Undoing, Because(protocol.CauseHealthGate, "units failed that had not before: [web.service]"),
			true},
		"third.json": {Undone, Because(protocol.CauseThirdClosure,
			"22222222222222222222222222222222-nixos-system-web-01-2"), false},
	} {
		doc, err := os.ReadFile(filepath.Join("testdata", "cbeb76d", name))
		if err != nil {
			t.Fatal(err)
		}
		dir := openDir(t)
		if err := os.WriteFile(dir.Path(File), doc, 0o600); err != nil {
			t.Fatal(err)
		}
		j, err := dir.Journal()
		if err != nil || j.Step != c.step || j.Reason != c.reason || j.Blame != c.blame || j.Closure == "" ||
			j.Units.Deadline == "" {
			t.Fatalf("%s: %+v, %v", name, j, err)
		}
		// What this build writes is the same text: its reader may be the earlier build.
		if err := dir.Write("again.json", j); err != nil {
			t.Fatal(err)
		}
		var again Journal
		if err := dir.Read("again.json", &again); err != nil || again.Reason.String() != c.reason.String() {
			t.Errorf("%s: written as %+v, %v", name, again.Reason, err)
		}
	}
}
