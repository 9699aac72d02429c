package modules

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The examples of secrets evaluate, against stand-ins for agenix's and sops-nix's own
// options, to units that take each secret from where those put it.
func TestExamplesOfSecrets(t *testing.T) {
	nixpkgsLib(t)
	for kind, run := range map[string]string{"agenix": "/run/agenix/nixfleet-", "sops-nix": "/run/secrets/nixfleet/"} {
		for part, want := range map[string][]string{
			"control-plane": {"LoadCredential=tls-key:" + run + "server-key\n", "LoadCredential=fleet-ca-key:" + run +
				"issuing-ca-key\n", "--fleet-ca-key=%d/fleet-ca-key"},
			"host": {"--bootstrap-token-file=" + run + "bootstrap-token"},
		} {
			t.Run(kind+" "+part, func(t *testing.T) {
				var r rendered
				err := evaluate(t, fmt.Sprintf(`stub [
  (root + "/roles/cp/module.nix")
  (root + "/roles/agent/module.nix")
  (configurations + "/trust.nix")
  (root + "/nixops/modules/testdata/secrets/%[1]s.nix")
  (import (root + "/nixops/examples/%[1]s.nix")).%[2]s
]`, kind, part), &r)
				if err != nil {
					t.Fatal(err)
				}
				if len(r.Failed) > 0 {
					t.Errorf("assertions fail: %q", r.Failed)
				}
				unit := r.Units["nixfleet-"+strings.Replace(part, "host", "agent", 1)+".service"]
				for _, line := range want {
					if !strings.Contains(unit, line) {
						t.Errorf("the unit has no %q:\n%s", line, unit)
					}
				}
				if part == "control-plane" && !strings.Contains(r.Units["nixfleet-control-plane-credentials.path"],
					"PathChanged="+run+"server-key\n") {
					t.Error("a renewed key restarts nothing")
				}
				for name, text := range r.Units {
					if strings.Contains(text, "/secrets/server.key.age") {
						t.Errorf("%s names the encrypted file", name)
					}
				}
			})
		}
	}
}

// A secret that is renewed restarts the control plane: agenix and sops-nix switch a link
// above the file, which the path unit does not see, so that the encrypted file's content
// is among the triggers. Its path is not: a flake's is another one at every commit.
func TestRenewedSecretsRestartTheControlPlane_A40(t *testing.T) {
	nixpkgsLib(t)
	for kind, file := range map[string]string{"agenix": "server.key.age", "sops-nix": "control-plane.yaml"} {
		trigger := func(content string) string {
			t.Helper()
			dir := filepath.Join(t.TempDir(), "examples")
			if err := os.CopyFS(dir, os.DirFS("../examples")); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(filepath.Join(dir, "secrets"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "secrets", file), []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
			var r rendered
			if err := evaluate(t, fmt.Sprintf(`stub [
  (root + "/roles/cp/module.nix")
  (configurations + "/trust.nix")
  (root + "/nixops/modules/testdata/secrets/%s.nix")
  (import "%s/%[1]s.nix").control-plane
]`, kind, dir), &r); err != nil {
				t.Fatal(err)
			}
			if len(r.Warnings) > 0 {
				t.Errorf("warnings %q", r.Warnings)
			}
			_, rest, _ := strings.Cut(r.Units["nixfleet-control-plane.service"], "\nX-Restart-Triggers=")
			line, _, _ := strings.Cut(rest, "\n")
			return line
		}
		one, again, other := trigger("one"), trigger("one"), trigger("other")
		if one == "" || one != again || one == other {
			t.Errorf("%s: the triggers are %q, elsewhere %q, of another secret %q", kind, one, again, other)
		}
	}
}

// What a build makes is told by its path, and a file that only the machine has says
// nothing rather than to end the evaluation.
func TestFingerprintsOfEncryptedFiles(t *testing.T) {
	nixpkgsLib(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "x.age"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	var got map[string][]string
	err := evaluate(t, fmt.Sprintf(`let
  of = file: (import (root + "/nixops/secrets.nix") lib { age.secrets.x = { inherit file; }; } [ "/run/agenix/x" "/run/agenix/x" null "/etc/y" ]).triggers;
  built = derivation { name = "x"; system = "x86_64-linux"; builder = "/bin/sh"; };
in {
  path = of (/. + "%[1]s/x.age");
  text = of "%[1]s/x.age";
  built = map builtins.unsafeDiscardStringContext (of "${built}");
  absent = of "%[1]s/y.age";
  none = (import (root + "/nixops/secrets.nix") lib { } [ "/run/agenix/x" ]).triggers;
}`, dir), &got)
	if err != nil {
		t.Fatal(err)
	}
	const hash = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
	if fmt.Sprint(got["path"], got["text"], got["absent"], got["none"]) != "["+hash+"] ["+hash+"] [] []" ||
		len(got["built"]) != 1 || !strings.HasSuffix(got["built"][0], "-x") {
		t.Errorf("fingerprints %q", got)
	}
}
