package modules

import (
	"fmt"
	"strings"
	"testing"
)

// The examples of secrets evaluate, against stand-ins for agenix's and sops-nix's own
// options, to units that take each secret from where those put it.
func TestExamplesOfSecrets(t *testing.T) {
	nixpkgsLib(t)
	for kind, run := range map[string]string{"agenix": "/run/agenix/nixfleet-", "sops-nix": "/run/secrets/nixfleet/"} {
		for part, want := range map[string][]string{
			"control-plane": {"LoadCredential=tls-key:" + run + "server-key\n", "LoadCredential=fleet-ca-key:" + run + "issuing-ca-key\n", "--fleet-ca-key=%d/fleet-ca-key"},
			"host":          {"--bootstrap-token-file=" + run + "bootstrap-token"},
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
				if part == "control-plane" && !strings.Contains(r.Units["nixfleet-control-plane-credentials.path"], "PathChanged="+run+"server-key\n") {
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
