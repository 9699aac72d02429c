package nixops

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// What undoes a switch runs by itself, and finds Nix and its daemon as the agent did.
func TestUnitsGetTheWayToTheStore(t *testing.T) {
	for _, remote := range []string{"daemon", ""} {
		t.Setenv("NIX_REMOTE", remote)
		f := unitFiles{t.TempDir()}
		say := []string{"/bin/sh", "-c", `echo "$PATH ${NIX_REMOTE-unset}" >` + f.path("unit", "out")}
		if err := f.script("unit", 0, say, nil); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), "/bin/sh", f.path("unit", "sh"))
		cmd.Env = []string{"PATH=/elsewhere"}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		said, err := os.ReadFile(f.path("unit", "out"))
		if err != nil {
			t.Fatal(err)
		}
		want := os.Getenv("PATH") + " " + remote
		if remote == "" {
			want += "unset"
		}
		if got := strings.TrimSpace(string(said)); got != want {
			t.Errorf("the unit has %q, want %q", got, want)
		}
	}
}
