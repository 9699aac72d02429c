package nixops

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet/pki"
)

// CI runs Nix on a build machine. The zero value uses the Nix on PATH with that Nix's own configuration.
type CI struct {
	Nix        string // directory of the Nix binaries; "" means PATH
	NixConfDir string // NIX_CONF_DIR; "" does not set it
	Store      string // --store; "" means the machine's own store
	// Roots is a directory of links that keep the garbage collector from removing what was built before it
	// is copied [A13]; "" keeps nothing. The caller that makes the directory also removes it.
	Roots    string
	Progress func(string) // gets each line that Nix prints; may be nil; must be safe for concurrent calls
	// EvalTimeout and BuildTimeout bound one call; 0 means 30 minutes and 6 hours.
	EvalTimeout, BuildTimeout time.Duration
}

// FlakeHost is a host whose system a flake declares.
type FlakeHost struct {
	Name string
	Kind string // KindNixOS or KindDarwin
}

// The kinds of system that a flake can declare.
const (
	KindNixOS  = "nixos"
	KindDarwin = "darwin"
)

func (c CI) command(timeout, usual time.Duration, tool string, args ...string) command {
	n := nix{bin: c.Nix, confDir: c.NixConfDir, store: c.Store}
	if filepath.IsAbs(c.Store) {
		n.cache = c.Store + "/var/cache" // what Nix caches about a store stays with that store
	}
	cmd := n.command(tool, args...)
	cmd.lines = c.Progress
	cmd.timeout = timeout
	if timeout == 0 {
		cmd.timeout = usual
	}
	return cmd
}

// Eval returns the value of a flake's attribute as JSON. An attribute that contains a # is a complete
// flake reference, and Eval passes it to Nix unchanged.
func (c CI) Eval(ctx context.Context, flake, attr string) ([]byte, error) {
	installable := attr
	if !strings.Contains(attr, "#") {
		installable = flake + "#" + attr
	}
	out, err := c.command(c.EvalTimeout, 30*time.Minute, "nix", "eval", "--json", installable).run(ctx)
	if err != nil {
		return nil, fmt.Errorf("evaluate %s: %w", installable, err)
	}
	return out, nil
}

// ListHosts returns the hosts whose systems a flake declares, sorted by name.
func (c CI) ListHosts(ctx context.Context, flake string) ([]FlakeHost, error) {
	found := map[string][]string{}
	for _, kind := range []string{KindNixOS, KindDarwin} {
		attr := flake + "#" + kind + "Configurations"
		list := c.command(c.EvalTimeout, 30*time.Minute, "nix", "eval", "--json", "--apply", "builtins.attrNames", attr)
		// A flake need not have hosts of both kinds, so nobody should see Nix's error about the missing kind.
		list.lines = nil
		out, err := list.run(ctx)
		if failed, ok := errors.AsType[*commandError](err); ok && strings.Contains(failed.stderr,
			"does not provide attribute") {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list hosts of %s: %w", attr, err)
		}
		var names []string
		if err := json.Unmarshal(out, &names); err != nil {
			return nil, fmt.Errorf("list hosts of %s: %w", attr, err)
		}
		found[kind] = names
	}
	return flakeHosts(found[KindNixOS], found[KindDarwin]), nil
}

// Build builds a host's system and returns its store path.
func (c CI) Build(ctx context.Context, flake string, host FlakeHost) (string, error) {
	name := quotedName(host.Name)
	attr := flake + "#nixosConfigurations." + name + ".config.system.build.toplevel"
	if host.Kind == KindDarwin {
		attr = flake + "#darwinConfigurations." + name + ".system"
	}
	return c.BuildAttr(ctx, attr)
}

// BuildAttr builds what a flake reference names and returns its store path. It fails if there is more than one.
func (c CI) BuildAttr(ctx context.Context, installable string) (string, error) {
	link := []string{"--no-link"}
	if c.Roots != "" {
		link = []string{"--out-link", filepath.Join(c.Roots, pki.HashHex([]byte(installable))[:32])}
	}
	build := append(append([]string{"build"}, link...), "--print-out-paths", installable)
	out, err := c.command(c.BuildTimeout, 6*time.Hour, "nix", build...).run(ctx)
	if err != nil {
		return "", fmt.Errorf("build %s: %w", installable, classify(err))
	}
	path := strings.TrimSpace(string(out))
	if _, err := StorePath(strings.TrimPrefix(path, storeDir+"/")); err != nil || !strings.HasPrefix(path, storeDir+"/") {
		return "", fmt.Errorf("build %s: %q is not one store path", installable, path)
	}
	return path, nil
}

// Copy copies closures to a binary cache (file://, s3://, ssh://, ...). With a signing key file, as
// `nix-store --generate-binary-cache-key` writes it, Copy first signs every path of the closures. A path that the
// cache already has keeps only its old signatures; Deliver adds the key's signature to it.
func (c CI) Copy(ctx context.Context, paths []string, dest, signingKeyFile string) error {
	if len(paths) == 0 {
		return nil
	}
	if signingKeyFile != "" {
		key, err := filepath.Abs(signingKeyFile)
		if err != nil {
			return fmt.Errorf("signing key: %w", err)
		}
		sign := append([]string{"store", "sign", "--recursive", "--key-file", key}, paths...)
		if _, err := c.command(c.BuildTimeout, 6*time.Hour, "nix", sign...).run(ctx); err != nil {
			return fmt.Errorf("sign for %s: %w", dest, classify(err))
		}
	}
	copying := c.command(c.BuildTimeout, 6*time.Hour, "nix", append([]string{"copy", "--to", dest}, paths...)...)
	return withoutMemory(func(fresh []string) error {
		copying.env = append(copying.env, fresh...)
		if _, err := copying.run(ctx); err != nil {
			return fmt.Errorf("copy to %s: %w", dest, classify(err))
		}
		return nil
	})
}
