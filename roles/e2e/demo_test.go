package e2e

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet/nixops/testnix"
)

// demoRun runs the demonstration with a PATH and a home of its own.
func demoRun(t *testing.T, path, home string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, append([]string{"demo"}, args...)...)
	cmd.WaitDelay = time.Second
	// Of an operator who runs another fleet.
	cmd.Env = []string{"PATH=" + path, "HOME=" + home, "TMPDIR=" + home, "NIXFLEET_SIGN_CMD=false",
		"NIXFLEET_CP_URL=https://cp.example.com"}
	var out, said strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &said
	err = cmd.Run()
	return out.String(), said.String(), err
}

func everyChapter(t *testing.T, summary string) {
	t.Helper()
	var happened map[string]bool
	if err := json.Unmarshal([]byte(summary), &happened); err != nil {
		t.Fatalf("summary %q: %v", summary, err)
	}
	for _, chapter := range []string{"enrolment", "converge", "canary", "halt", "repair", "revocation", "recovery"} {
		if !happened[chapter] {
			t.Errorf("%s did not happen: %s", chapter, summary)
		}
	}
}

// TestDemoKeepsToItself: the operator's own configuration, variables and files are
// neither used nor touched, and nothing stays behind.
func TestDemoKeepsToItself(t *testing.T) {
	t.Parallel()
	home := t.TempDir()
	config := filepath.Join(home, ".config/nixfleet/config.toml")
	if err := os.MkdirAll(filepath.Dir(config), 0o700); err != nil {
		t.Fatal(err)
	}
	own := []byte(
		"push_cmd = \"false\"\nrecipient = \"age1lvyvwawkr0mcnnnncaghunadrqkmuf9e6507x9y920xxpp866cnql7dp2z\"\ntrust_file " +
			"= \"/nonexistent\"\n")
	if err := os.WriteFile(config, own, 0o600); err != nil {
		t.Fatal(err)
	}
	out, said, err := demoRun(t, os.Getenv("PATH"), home, "--hosts", "3", "--json")
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	everyChapter(t, out)
	if after, err := os.ReadFile(config); err != nil || string(after) != string(own) {
		t.Errorf("the operator's configuration is %q now: %v", after, err)
	}
	if entries, err := os.ReadDir(home); err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v %v", entries, err)
	}
}

// TestDemoNix tells the whole story with a real Nix store in every host.
func TestDemoNix(t *testing.T) {
	t.Parallel()
	nix := testnix.Find(t)
	home := testnix.TempDir(t)
	dir := filepath.Join(home, "kept")
	out, said, err := demoRun(t, nix.Bin()+":"+os.Getenv("PATH"), home, "--nix", "--hosts", "3", "--json", "--dir", dir)
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	everyChapter(t, out)
	if !strings.Contains(said, "private Nix store") {
		t.Errorf("it does not say what the machines are:\n%s", said)
	}
	// Every closure that a host had is a valid path of its own store, the broken one
	// included where it was tried, and nothing lies outside the directory.
	for name, closures := range map[string][]string{"web-01": {"0", "1", "2", "3", "4"}, "web-02": {"0", "1", "2", "4"},
		"edge-01": {"0", "1", "2", "4"}} {
		valid := strings.Fields(nix.Run(t, "nix-store", "--store", filepath.Join(dir, "hosts", name, "root"), "--query",
			"--requisites",
			"--include-outputs", filepath.Join(dir, "hosts", name, "root", "run/current-system")))
		if len(valid) == 0 {
			t.Errorf("%s runs nothing that its store knows", name)
		}
		for _, n := range closures {
			found, err := filepath.Glob(filepath.Join(dir, "hosts", name, "root/nix/store/*-nixos-system-"+name+"-"+n))
			if err != nil || len(found) != 1 {
				t.Errorf("%s: release %s in its store: %v %v", name, n, found, err)
			}
		}
	}
	entries, err := os.ReadDir(home)
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind outside its directory: %v %v", entries, err)
	}
}

// TestDemoWithoutNix: what was asked for is not silently replaced.
func TestDemoWithoutNix(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		args []string
		says string
	}{
		{"not on PATH", []string{"--nix"}, "there is none on PATH"},
		{"not in the directory", []string{"--nix", "--nix-bin-dir", "/nonexistent"}, "nix-store"},
	} {
		home := t.TempDir()
		out, said, err := demoRun(t, t.TempDir(), home, c.args...)
		var failed *exec.ExitError
		if !errors.As(err, &failed) || failed.ExitCode() != 1 {
			t.Errorf("%s: %v, want exit 1", c.name, err)
		}
		if out != "" || !strings.Contains(said, c.says) || !strings.Contains(said, "\nhint: install Nix") {
			t.Errorf("%s: says %q %q", c.name, out, said)
		}
		if err := fs.WalkDir(os.DirFS(home), ".", func(path string, _ fs.DirEntry, err error) error {
			if path != "." {
				t.Errorf("%s: left behind: %s", c.name, path)
			}
			return err
		}); err != nil {
			t.Error(err)
		}
	}
}
