package modules

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The VM tests cannot run here. As far as they go without NixOS they are evaluated:
// machines and every system that those may switch to, and the script, which Python reads.
func TestVMTestsEvaluate(t *testing.T) {
	nixpkgsLib(t)
	var tests map[string]struct {
		Script  string   `json:"script"`
		Failed  []string `json:"failed"`
		Systems []string `json:"systems"`
	}
	if err := evaluate(t, `import (root + "/nixops/modules/testdata/vm.nix") { inherit lib root; }`, &tests); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"enrol", "deploy", "rollback", "unbootable", "revoke", "wipe"} {
		t.Run(name, func(t *testing.T) {
			test, ok := tests["vm-"+name]
			if !ok {
				t.Fatal("there is no such test")
			}
			if len(test.Failed) > 0 {
				t.Errorf("assertions fail: %q", test.Failed)
			}
			systems := slices.Compact(slices.Sorted(slices.Values(test.Systems)))
			if len(systems) != len(test.Systems) {
				t.Errorf("two of the systems are the same: %q", test.Systems)
			}
			for _, system := range systems {
				if !strings.Contains(test.Script, "-"+system) {
					t.Errorf("the script does not know %s", system)
				}
			}
			if strings.Count(test.Script, "with subtest(") < 3 && name != "unbootable" && name != "rollback" {
				t.Errorf("the script has few chapters:\n%s", test.Script)
			}
			python, err := exec.LookPath("python3")
			if err != nil {
				t.Skip("python3 is not installed")
			}
			file := filepath.Join(t.TempDir(), name+".py")
			if err := os.WriteFile(file, []byte(test.Script), 0o644); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command(python, "-m", "py_compile", file).CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}
