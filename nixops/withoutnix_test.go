package nixops

import (
	"os"
	"testing"
)

// An undo sets the profile although Nix cannot be run: the generation that it goes back to exists.
func TestProfileIsSetWithoutNix(t *testing.T) {
	const (
		bad  = "11111111111111111111111111111111-nixos-system-web-01-1"
		good = "00000000000000000000000000000000-nixos-system-web-01-0"
		gone = "22222222222222222222222222222222-nixos-system-web-01-2"
	)
	root := t.TempDir()
	profiles := root + "/nix/var/nix/profiles/"
	if err := os.MkdirAll(profiles, 0o755); err != nil {
		t.Fatal(err)
	}
	for link, target := range map[string]string{
		"system-1-link": storeDir + "/" + good, "system-2-link": storeDir + "/" + bad, "system": "system-2-link",
	} {
		if err := os.Symlink(target, profiles+link); err != nil {
			t.Fatal(err)
		}
	}
	host, err := NewHost(HostConfig{Root: root, Nix: t.TempDir(), Supervisor: SupervisorProcess})
	if err != nil {
		t.Fatal(err)
	}
	if err := host.SetProfile(t.Context(), good); err != nil {
		t.Error(err)
	}
	if now, err := host.Profile(t.Context()); err != nil || now != good {
		t.Errorf("the profile leads to %q, %v", now, err)
	}
	if err := host.SetProfile(t.Context(), gone); err == nil {
		t.Error("the profile leads to a closure without a generation")
	}
}
