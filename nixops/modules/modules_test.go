// Package modules tests the NixOS modules of all roles: their options and
// assertions with nixpkgs' own lib, and the units they make.
package modules

import (
	"bytes"
	"context"
	"crypto/sha256"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"nixfleet/nixops/testnix"
)

var update = flag.Bool("update", false, "write the rendered files anew")

// nixpkgsLib is nixpkgs' lib directory, which CI does not have: what it renders
// there is committed, and the committed files are what CI examines.
func nixpkgsLib(t testing.TB) string {
	t.Helper()
	dir := os.Getenv("NIXPKGS_LIB")
	if dir == "" {
		t.Skip("needs nixpkgs' lib: set NIXPKGS_LIB to its directory")
	}
	return dir
}

// rendered is what a configuration comes to, see stub.nix.
type rendered struct {
	Units     map[string]string         `json:"units"`
	PreStart  map[string]string         `json:"preStart"`
	Etc       map[string]string         `json:"etc"`
	Failed    []string                  `json:"failed"`
	Warnings  []string                  `json:"warnings"`
	Rules     []string                  `json:"rules"`
	Variables map[string]string         `json:"variables"`
	Ports     []int                     `json:"ports"`
	Nix       map[string][]string       `json:"nix"`
	Packages  []string                  `json:"packages"`
	Daemons   map[string]jsontext.Value `json:"daemons"`
}

// evaluate gives the value of an expression, in which stub evaluates a list of
// modules and lib is nixpkgs' own.
func evaluate(t testing.TB, expression string, into any) error {
	t.Helper()
	nix, lib := testnix.Find(t), nixpkgsLib(t)
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(nix.Bin(), "nix-instantiate"), "--store", "dummy://", "--eval",
		"--strict", "--json", "--expr", fmt.Sprintf(
			`let
  lib = import %s;
  stub = modules: builtins.removeAttrs (import %s/stub.nix { inherit lib modules; }) [ "options" "parts" ];
  root = %s;
  configurations = root + "/nixops/modules/testdata/configurations";
in
%s`, lib, dir, filepath.Join(dir, "../.."), expression))
	cmd.Env = append(os.Environ(), "NIX_CONF_DIR="+nix.ConfDir())
	cmd.WaitDelay = time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("evaluate: %w\n%s", err, stderr.String())
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(stdout.Bytes(), into)
}

// configurations are the names of the fixtures that are whole configurations.
func configurations(t testing.TB) []string {
	t.Helper()
	paths, err := filepath.Glob("testdata/configurations/*.nix")
	if err != nil || len(paths) < 5 {
		t.Fatalf("%d configurations: %v", len(paths), err)
	}
	var names []string
	for _, p := range paths {
		if name := strings.TrimSuffix(filepath.Base(p), ".nix"); name != "trust" {
			names = append(names, name)
		}
	}
	return names
}

func renderedDir(name string) string { return filepath.Join("testdata/rendered", name) }

// files lays out what is committed of a rendered configuration.
func (r *rendered) files(t testing.TB) map[string]string {
	t.Helper()
	files := map[string]string{}
	maps.Copy(files, r.Units)
	for path, text := range r.Etc {
		files["etc/"+path] = text + "\n"
	}
	rest := *r
	rest.Units, rest.Etc = nil, nil
	text, err := json.Marshal(rest, json.Deterministic(true), jsontext.WithIndent("  "), json.FormatNilMapAsNull(true))
	if err != nil {
		t.Fatal(err)
	}
	files["rest.json"] = string(text) + "\n"
	return files
}

// committed reads the files below a directory.
func committed(t testing.TB, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		name, _ := filepath.Rel(dir, path)
		files[filepath.ToSlash(name)] = string(text)
		return err
	})
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return files
}

// sourcesFile holds the hash of all that the committed files were rendered from.
const sourcesFile = "testdata/rendered/sources.sha256"

func sourcesHash(t testing.TB) string {
	t.Helper()
	sum := sha256.New()
	for _, pattern := range []string{"../../roles/*/*.nix", "../../pki/*.nix", "../cache.nix", "../etc.nix",
		"../execstart.nix", "../flags.nix", "../secrets.nix", "stub.nix", "testdata/configurations/*.nix"} {
		paths, err := filepath.Glob(pattern)
		if err != nil || len(paths) == 0 {
			t.Fatalf("%s: %v", pattern, err)
		}
		for _, path := range paths {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(sum, "%s %d\n%s", path, len(text), text)
		}
	}
	return fmt.Sprintf("%x\n", sum.Sum(nil))
}

// A module that was changed without rendering anew is found where there is no
// nixpkgs, too.
func TestCommittedFilesAreOfTheseModules(t *testing.T) {
	if *update {
		t.Skip("they are being written anew")
	}
	have, err := os.ReadFile(sourcesFile)
	if err != nil {
		t.Fatal(err)
	}
	if string(have) != sourcesHash(t) {
		t.Errorf("a module or a configuration has changed since testdata/rendered was written:\n" +
			"NIXPKGS_LIB=/path/to/nixpkgs/lib NIXFLEET_TEST_NIX=/path/to/nix go test ./nixops/modules -update")
	}
}

// What is committed, and examined where there is no nixpkgs, is what the modules
// give today.
func TestCommittedFilesAreWhatTheModulesRender(t *testing.T) {
	nixpkgsLib(t)
	if *update {
		if err := os.WriteFile(sourcesFile, []byte(sourcesHash(t)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range configurations(t) {
		t.Run(name, func(t *testing.T) {
			var r rendered
			if err := evaluate(t, fmt.Sprintf(`stub [ (configurations + "/%s.nix") ]`, name), &r); err != nil {
				t.Fatal(err)
			}
			if len(r.Failed) > 0 {
				t.Errorf("assertions fail: %q", r.Failed)
			}
			want, dir := r.files(t), renderedDir(name)
			if *update {
				if err := os.RemoveAll(dir); err != nil {
					t.Fatal(err)
				}
				for file, text := range want {
					path := filepath.Join(dir, filepath.FromSlash(file))
					if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
						t.Fatal(err)
					}
					if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
						t.Fatal(err)
					}
				}
			}
			have := committed(t, dir)
			for _, file := range slices.Sorted(maps.Keys(want)) {
				if have[file] != want[file] {
					t.Errorf("%s/%s is stale: run go test ./nixops/modules -update\nit is\n%s\nit should be\n%s", dir, file,
						have[file], want[file])
				}
				delete(have, file)
			}
			for file := range have {
				t.Errorf("%s/%s is rendered no more: run go test ./nixops/modules -update", dir, file)
			}
		})
	}
}
