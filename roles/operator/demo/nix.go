package demo

import (
	"archive/tar"
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"nixfleet/nixops"
	"nixfleet/pki"
	"nixfleet/roles/command"
)

// nixMachines are hosts with a real private Nix store each, all below the
// demonstration's directory: closures come from the fleet's flake, are built in a
// store of their own, and reach the hosts through a signed cache over http.
// Nothing outside the directory is written, /nix included.
type nixMachines struct {
	s       *story
	bin     string // directory of the Nix programs
	version string
	key     string // public key of the cache
	cache   *http.Server
	url     string // of the cache
}

// flake declares the fleet. A system is what its tar holds: the unpacking is
// done by Nix itself, so that building needs no shell and no other package, which
// a machine without a nixpkgs at hand does not have.
const flake = `{
  outputs =
    { self }:
    let
      names = builtins.attrNames (builtins.readDir ./systems);
      system = name: derivation {
        name = builtins.readFile (./systems + "/${name}/name");
        system = %q;
        builder = "builtin:unpack-channel";
        channelName = "bin";
        src = ./systems + "/${name}/bin.tar";
      };
    in
    {
      fleet.resolved = builtins.fromJSON (builtins.readFile ./fleet.json);
      nixosConfigurations = builtins.listToAttrs (map (name: {
        inherit name;
        value.config.system.build.toplevel = system name;
      }) names);
    };
}
`

// switchScript stands for switch-to-configuration where there is no init.
//
//go:embed switch.sh
var switchScript string

// nixConf is all the configuration that Nix gets. The stores are private, so
// builds run in a namespace whatever the sandbox is set to.
const nixConf = `experimental-features = nix-command flakes
build-users-group =
substituters =
sandbox-paths =
flake-registry =
`

// findNix is the Nix of a directory, or of PATH.
func findNix(ctx context.Context, bin string) (dir, version string, err error) {
	const hint = "install Nix (https://nixos.org/download) or name its directory by --nix-bin-dir; without --nix the " +
		"hosts are simulated"
	if runtime.GOOS != "linux" {
		return "", "", command.Usage("leave out --nix: the hosts are then simulated",
			"demo --nix runs on Linux only, this is %s", runtime.GOOS)
	}
	program := filepath.Join(bin, "nix")
	if bin == "" {
		if program, err = exec.LookPath("nix"); err != nil {
			return "", "", command.Hinted(errors.New("--nix needs a Nix, and there is none on PATH"), hint)
		}
		program, err = filepath.Abs(program)
	} else {
		program, err = filepath.Abs(program)
	}
	if err != nil {
		return "", "", err
	}
	for _, tool := range []string{"nix-store", "nix-env"} {
		if _, err := exec.LookPath(filepath.Join(filepath.Dir(program), tool)); err != nil {
			return "", "", command.Hinted(fmt.Errorf("--nix needs %s beside nix: %w", tool, err), hint)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "--version")
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", "", command.Hinted(fmt.Errorf("run %s --version: %w: %s", program, err, bytes.TrimSpace(out)), hint)
	}
	return filepath.Dir(program), string(bytes.TrimSpace(out)), nil
}

func (m *nixMachines) store() string   { return m.s.path("nix", "build") }
func (m *nixMachines) confDir() string { return m.s.path("nix", "etc") }
func (m *nixMachines) dest() string {
	return "file://" + m.s.path("nix", "cache") + "?compression=none"
}
func (m *nixMachines) root(name string) string {
	return m.s.path("hosts", name, "root")
}

func (m *nixMachines) ci() nixops.CI {
	return nixops.CI{Nix: m.bin, NixConfDir: m.confDir(), Store: m.store()}
}

// serve answers as a binary cache on loopback.
func (m *nixMachines) serve() error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("serve the cache: %w", err)
	}
	m.url = "http://" + listener.Addr().String()
	m.cache = &http.Server{Handler: http.FileServer(http.Dir(m.s.path("nix", "cache"))),
		ReadHeaderTimeout: 10 * time.Second}
	m.s.running.Go(func() { _ = m.cache.Serve(listener) }) // ends by stop
	return nil
}

func (m *nixMachines) stop() {
	if m.cache != nil {
		m.cache.Close()
	}
}

func (m *nixMachines) String() string {
	return "each with a private Nix store (" + m.version + ")"
}

func (m *nixMachines) install(ctx context.Context) error {
	for _, dir := range []string{m.confDir(), m.store(), m.s.path("nix", "cache")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(m.confDir(), "nix.conf"), []byte(nixConf), 0o644); err != nil {
		return err
	}
	trust, _, err := pki.LoadTrust(m.s.key("trust.json"))
	if err != nil {
		return err
	}
	if len(trust.CacheKeys) == 0 {
		return errors.New("trust.json names no cache key")
	}
	m.key = trust.CacheKeys[0]
	if err := m.serve(); err != nil {
		return err
	}
	if _, err := m.release(ctx, func(string) int { return 0 }, 0, false); err != nil {
		return err
	}
	if err := m.s.git(ctx, m.s.path("fleet"), "add", "--all"); err != nil {
		return err
	}
	// The first systems come the same way as all later ones: built, signed, fetched.
	closures := make([]string, len(m.s.names))
	build := func(ctx context.Context, i int) (err error) {
		closures[i], err = m.ci().Build(ctx, m.s.path("fleet"), nixops.FlakeHost{Name: m.s.names[i], Kind: nixops.KindNixOS})
		return command.Hinted(err, "builds in a private store need user namespaces, which a container may forbid")
	}
	// The first makes the store; several at once would get into each other's way.
	if err := build(ctx, 0); err != nil {
		return err
	}
	group, each := errgroup.WithContext(ctx)
	group.SetLimit(runtime.NumCPU())
	for i := range closures[1:] {
		group.Go(func() error { return build(each, i+1) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if err := m.ci().Copy(ctx, closures, m.dest(), m.s.key("cache.key")); err != nil {
		return err
	}
	group, each = errgroup.WithContext(ctx)
	group.SetLimit(runtime.NumCPU())
	for i, name := range m.s.names {
		group.Go(func() error { return m.boot(each, name, filepath.Base(closures[i])) })
	}
	return group.Wait()
}

// boot makes the machine that runs a closure.
func (m *nixMachines) boot(ctx context.Context, name, closure string) error {
	if err := os.MkdirAll(filepath.Join(m.root(name), "run"), 0o755); err != nil {
		return err
	}
	host, err := nixops.NewHost(nixops.HostConfig{
		Root: m.root(name), Nix: m.bin, NixConfDir: m.confDir(), Supervisor: nixops.SupervisorProcess,
		Substituters: []string{m.url}, TrustedPublicKeys: []string{m.key},
	})
	if err != nil {
		return err
	}
	if err := host.Realise(ctx, closure, nil); err != nil {
		return fmt.Errorf("install %s: %w", name, err)
	}
	if err := host.SetProfile(ctx, closure); err != nil {
		return fmt.Errorf("install %s: %w", name, err)
	}
	return host.RestoreCurrent(ctx, closure)
}

func (m *nixMachines) release(ctx context.Context, want func(string) int, n int, bad bool) ([]string, error) {
	system := map[string]string{"amd64": "x86_64-linux", "arm64": "aarch64-linux"}[runtime.GOARCH]
	if err := m.s.write("fleet/flake.nix", fmt.Appendf(nil, flake, system)); err != nil {
		return nil, err
	}
	for _, name := range m.s.names {
		if want(name) != n {
			continue // as it is in the checkout
		}
		failing := ""
		if bad {
			failing = failingUnit
		}
		archive, err := systemTar(failing)
		if err != nil {
			return nil, err
		}
		if err := m.s.write("fleet/systems/"+name+"/name", []byte(systemName(name, n))); err != nil {
			return nil, err
		}
		if err := m.s.write("fleet/systems/"+name+"/bin.tar", archive); err != nil {
			return nil, err
		}
	}
	return []string{
		"--nix-bin-dir", m.bin, "--nix-conf-dir", m.confDir(), "--store", m.store(), "--jobs", fmt.Sprint(runtime.NumCPU()),
		"--copy-to", m.dest(), "--cache-key", m.s.key("cache.key"),
	}, nil
}

// systemTar is bin/ of a system. A failing unit makes its switch fail.
func systemTar(failing string) ([]byte, error) {
	script := strings.Replace(switchScript, "failing=", "failing="+failing, 1)
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	err := errors.Join(
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "bin/", Mode: 0o755}),
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "bin/switch-to-configuration", Mode: 0o755,
			Size: int64(len(script))}),
	)
	if err == nil {
		_, err = w.Write([]byte(script))
	}
	err = errors.Join(err, w.Close())
	return out.Bytes(), err
}

func (m *nixMachines) agentFlags(name string) []string {
	return []string{
		"--root", m.root(name), "--supervisor", nixops.SupervisorProcess, "--nix-bin-dir", m.bin, "--nix-conf-dir",
		m.confDir(),
		"--substituters", m.url, "--trusted-public-keys", m.key, "--agent-outside-closure",
	}
}
