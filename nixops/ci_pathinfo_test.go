package nixops

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestPathInfosOfEveryNix asks stand-ins that behave as versions of Nix do when nobody chooses a JSON format: silent
// (2.26), with a warning (2.33), with a refusal, with another format, and as a list (2.18, Lix).
func TestPathInfosOfEveryNix(t *testing.T) {
	const path = "/nix/store/0a1b2c3d4f5g6h7i8j9k0l1m2n3p4q5r-top"
	const format1 = `echo '{"` + path + `":{"narSize":7,"references":["` + path + `"]}}'`
	const chosen = `case "$*" in *"--json-format 1"*) ` + format1 + `; exit 0;; esac
`
	for name, script := range map[string]string{
		"silent": `case "$*" in *--json-format*) echo "error: unrecognised flag '--json-format'" >&2; exit 1;; esac
` + format1,
		"warns": chosen + `echo "warning: 'nix path-info --json' without '--json-format' is deprecated" >&2
` + format1,
		"refuses": chosen + `echo "error: 'nix path-info --json' needs '--json-format'" >&2
exit 1`,
		"prints format 2": chosen + `echo '{"version":2,"storeDir":"/nix/store","info":{"0a1b-top":{"narHash":{"a":1}}}}'`,
		"prints a list":   `echo '[{"path":"` + path + `","valid":true,"narSize":7,"references":["` + path + `"]}]'`,
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "nix"), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		var said []string
		ci := CI{Nix: dir, Progress: func(line string) { said = append(said, line) }}
		infos, err := pathInfos(t.Context(), ci.command(0, quick, "nix", "path-info", "--json", path))
		if err != nil || infos[path] == nil || infos[path].NarSize != 7 || len(infos[path].References) != 1 {
			t.Errorf("Nix that %s: %v, %v", name, infos, err)
		}
		if strings.Contains(strings.Join(said, "\n"), "warning") {
			t.Errorf("Nix that %s: people read %q", name, said)
		}
	}
}
