// Package testnix gives tests a real Nix: private stores, small system closures that build in milliseconds, signing
// keys, and a binary cache over http on loopback whose answers a test can spoil. Only tests import it. Without
// NIXFLEET_TEST_NIX they are skipped.
package testnix

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nixfleet/nixops"
)

// Env is the environment variable that names the directory of a Nix, which .ci/nix.sh makes.
const Env = "NIXFLEET_TEST_NIX"

// Nix is an unpacked Nix, with its binaries in bin and its configuration in etc.
type Nix struct{ Dir string }

// Find returns the Nix of the test machine, or skips the test if there is none.
func Find(t testing.TB) Nix {
	t.Helper()
	dir := os.Getenv(Env)
	if dir == "" {
		t.Skipf("no real Nix: set %s to the directory that .ci/nix.sh made", Env)
	}
	if _, err := os.Stat(filepath.Join(dir, "bin/nix")); err != nil {
		t.Fatalf("%s: %v", Env, err)
	}
	return Nix{Dir: dir}
}

// Bin returns the directory of the binaries.
func (n Nix) Bin() string { return filepath.Join(n.Dir, "bin") }

// ConfDir returns the directory of nix.conf.
func (n Nix) ConfDir() string { return filepath.Join(n.Dir, "etc") }

// Run runs one of the tools and returns what it printed. A failure ends the test.
func (n Nix) Run(t testing.TB, tool string, args ...string) string {
	t.Helper()
	out, err := n.Try(tool, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", tool, strings.Join(args, " "), err, out)
	}
	return out
}

// Try runs one of the tools and returns what it printed, or what it wrote to stderr if it failed.
func (n Nix) Try(tool string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(n.Bin(), tool), args...)
	cmd.Env = append(os.Environ(), "NIX_CONF_DIR="+n.ConfDir())
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return stderr.String(), err
	}
	return strings.TrimSpace(string(out)), nil
}

// TempDir makes a directory for a store and removes it when the test ends. testing.TB's own TempDir cannot remove store
// paths, because they are read-only.
func TempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "nixfleet-store-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				os.Chmod(path, 0o700)
			}
			return nil
		})
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove store: %v", err)
		}
	})
	return dir
}

// Config returns the configuration of a host below root that trusts the keys and asks the caches.
func (n Nix) Config(root string, caches []*Cache, keys ...Key) nixops.HostConfig {
	c := nixops.HostConfig{
		Root: root, Nix: n.Bin(), NixConfDir: n.ConfDir(), Supervisor: nixops.SupervisorProcess,
		Substituters: []string{}, TrustedPublicKeys: []string{},
	}
	for _, cache := range caches {
		c.Substituters = append(c.Substituters, cache.URL)
	}
	for _, k := range keys {
		c.TrustedPublicKeys = append(c.TrustedPublicKeys, k.Public)
	}
	return c
}

// Key is a cache's signing key.
type Key struct {
	Public     string // name:base64
	SecretFile string
}

// NewKey makes a signing key of that name.
func (n Nix) NewKey(t testing.TB, name string) Key {
	t.Helper()
	dir := t.TempDir()
	secret, public := filepath.Join(dir, "secret"), filepath.Join(dir, "public")
	n.Run(t, "nix-store", "--generate-binary-cache-key", name, secret, public)
	text, err := os.ReadFile(public)
	if err != nil {
		t.Fatal(err)
	}
	return Key{Public: strings.TrimSpace(string(text)), SecretFile: secret}
}
