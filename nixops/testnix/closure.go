package testnix

import (
	_ "embed"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
)

// Store is a private store in which tests build.
type Store struct {
	Dir string // also its --store
	nix Nix
}

// NewStore makes an empty store that exists until the test ends.
func (n Nix) NewStore(t testing.TB) *Store {
	return &Store{Dir: TempDir(t), nix: n}
}

// Spec describes a small system closure. Its switch script is a model of switch-to-configuration, see model.sh. The
// variable NIXFLEET_ROOT tells the script the host's root directory.
type Spec struct {
	Name            string            // of the store path; "" is "nixos-system-test"
	Files           map[string]string // path in the closure -> content, 0644; those in bin/ are 0755
	Links           map[string]string // path in the closure -> target
	Specialisations map[string]string // name -> base name of a closure of the same store
	Agent           string            // a file of this machine that becomes sw/bin/nixfleet-agent
	TrustJSON       string
	NoSwitch        bool
	Script          string // the switch script; "" means the model
	Padding         int    // bytes that do not compress

	// What the model does. The fields have the names that sim.Closure uses.
	ExitCode, BootExit, CheckExit int
	NoCheck                       bool
	SwitchSeconds                 float64
	FailedUnits                   []string // listed as failed once the script ran; it then exits 4 unless ExitCode is set
	InactiveUnits                 []string // listed as neither active nor failed
	Restarts                      map[string]int
}

// model is the switch script of closures without one of their own.
//
//go:embed model.sh
var model string

// marker is a text in every closure that Build builds, so that Corrupt finds a byte of the content.
const marker = "built by a nixfleet test"

// expression is a Nix function that makes a derivation from a JSON file.
const expression = `{ spec }:
let
  s = builtins.fromJSON (builtins.readFile spec);
in
derivation (
  {
    inherit (s) name;
    system = builtins.currentSystem;
    builder = "/bin/sh";
    PATH = "/usr/bin:/bin";
    args = [ "-c" s.script ];
  }
  // s.texts
  // builtins.mapAttrs (_: builtins.storePath) s.closures
  // builtins.mapAttrs (_: file: builtins.path { path = file; name = "nixfleet-agent"; }) s.agents
)`

// Build builds the closure and returns the base name of its store path. Equal specs give the same closure.
func (s *Store) Build(t testing.TB, spec Spec) string {
	t.Helper()
	dir := t.TempDir()
	data, err := json.Marshal(spec.arguments(), json.Deterministic(true))
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "spec.json"), data, 0o644)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "closure.nix"), []byte(expression), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	path := s.nix.Run(t, "nix-build", filepath.Join(dir, "closure.nix"),
		"--arg", "spec", filepath.Join(dir, "spec.json"), "--store", s.Dir, "--no-out-link")
	return filepath.Base(path)
}

// contents returns the files of the closure: those that the spec names, and those that tell the model what to do.
func (spec *Spec) contents() map[string]string {
	files := map[string]string{"model/marker": marker}
	if !spec.NoSwitch {
		files["bin/switch-to-configuration"] = model
		if spec.Script != "" {
			files["bin/switch-to-configuration"] = spec.Script
		}
	}
	if spec.TrustJSON != "" {
		files["etc/nixfleet/agent/trust.json"] = spec.TrustJSON
	}
	for name, code := range map[string]int{"exit": spec.ExitCode, "boot-exit": spec.BootExit,
		"check-exit": spec.CheckExit} {
		if code != 0 {
			files["model/"+name] = strconv.Itoa(code)
		}
	}
	if spec.NoCheck {
		files["model/no-check"] = "1"
	}
	if spec.SwitchSeconds > 0 {
		files["model/seconds"] = strconv.FormatFloat(spec.SwitchSeconds, 'f', 3, 64)
	}
	if len(spec.FailedUnits) > 0 {
		files["model/failed-units"] = strings.Join(spec.FailedUnits, "\n") + "\n"
	}
	if len(spec.InactiveUnits) > 0 {
		files["model/inactive-units"] = strings.Join(spec.InactiveUnits, "\n") + "\n"
	}
	var restarts strings.Builder
	for _, unit := range slices.Sorted(maps.Keys(spec.Restarts)) {
		fmt.Fprintf(&restarts, "%s %d\n", unit, spec.Restarts[unit])
	}
	if restarts.Len() > 0 {
		files["model/restarts"] = restarts.String()
	}
	maps.Copy(files, spec.Files)
	return files
}

// arguments returns the content of the JSON file that the expression reads.
func (spec *Spec) arguments() map[string]any {
	files, name := spec.contents(), spec.Name
	if name == "" {
		name = "nixos-system-test"
	}
	texts := map[string]string{}
	closures := map[string]string{}
	agents := map[string]string{}
	script := "set -e\n"
	for i, path := range slices.Sorted(maps.Keys(files)) {
		variable := fmt.Sprintf("text%d", i)
		texts[variable] = files[path]
		script += fmt.Sprintf("mkdir -p \"$out/%s\"; printf %%s \"$%s\" >\"$out/%s\"\n", filepath.Dir(path), variable, path)
		if strings.HasPrefix(path, "bin/") {
			script += fmt.Sprintf("chmod 755 \"$out/%s\"\n", path)
		}
	}
	for _, path := range slices.Sorted(maps.Keys(spec.Links)) {
		script += fmt.Sprintf("mkdir -p \"$out/%s\"; ln -s '%s' \"$out/%s\"\n", filepath.Dir(path), spec.Links[path], path)
	}
	for i, special := range slices.Sorted(maps.Keys(spec.Specialisations)) {
		variable := fmt.Sprintf("closure%d", i)
		closures[variable] = "/nix/store/" + spec.Specialisations[special]
		script += fmt.Sprintf("mkdir -p \"$out/specialisation\"; ln -s \"$%s\" \"$out/specialisation/%s\"\n", variable,
			special)
	}
	if spec.Agent != "" {
		agents["agent"] = spec.Agent
		script += "mkdir -p \"$out/sw/bin\"; ln -s \"$agent\" \"$out/sw/bin/nixfleet-agent\"\n"
	}
	if spec.Padding > 0 {
		script += fmt.Sprintf("head -c %d /dev/urandom >\"$out/padding\"\n", spec.Padding)
	}
	return map[string]any{"name": name, "script": script, "texts": texts, "closures": closures, "agents": agents}
}
