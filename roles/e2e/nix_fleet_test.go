package e2e

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet/nixops"
	"nixfleet/nixops/testnix"
	"nixfleet/pki"
	"nixfleet/roles/protocol/client"
)

const nixSuffix = "fleet.test"

// nixFleet is a whole fleet on one machine: keys, a forge, a checkout of the
// fleet's repository, a store to build in, a cache over http, a control plane and
// hosts with private stores.
type nixFleet struct {
	t       *testing.T
	nix     testnix.Nix
	dir     string
	build   *testnix.Store
	cache   *testnix.Cache
	foreign testnix.Key // a cache key that no host believes
	address string      // of the control plane
	hosts   map[string]*nixHost
	client  *client.Client // the operator's
}

// nixHost is one machine below a directory.
type nixHost struct {
	name, root, dir, pubkey string
	key                     *pki.PrivateKey
	host                    nixops.Host
	url                     string // of the control plane, or of who claims to be it
	stop                    func()
}

// nixFlake declares the fleet by mkFleet, as a flake that locks and evaluates
// without a network. Closures are built by /bin/sh; what a host runs is changed
// in hosts/NAME.
const nixFlake = `{
  inputs.nixfleet = {
    url = "path:%s";
    flake = false;
  };

  outputs =
    { self, nixfleet }:
    let
      inherit (import nixfleet) mkFleet;
      declaration = import ./fleet.nix;
      derive = name: system: env: script: derivation ({
        inherit name system;
        builder = "/bin/sh";
        PATH = "/usr/bin:/bin";
        args = [ "-c" script ];
      } // env);
      system = name: host: derive "nixos-system-${name}" host.system {
        model = builtins.readFile ./switch-to-configuration;
        release = builtins.readFile (./hosts + "/${name}");
        etc = derive "etc-${name}" host.system { text = builtins.readFile (./hosts + "/${name}"); } "mkdir $out; printf %%s \"$text\" >$out/issue";
      } "mkdir -p $out/bin; printf '%%s\n' \"$model\" >$out/bin/switch-to-configuration; chmod 755 $out/bin/switch-to-configuration; ln -s $etc $out/etc; printf %%s \"$release\" >$out/nixos-version";
    in
    {
      fleet = mkFleet (declaration // {
        hosts = builtins.mapAttrs (name: host: host // {
          configuration.config.system.build.toplevel = system name host;
        }) declaration.hosts;
      });
      inherit (self.fleet) nixosConfigurations;
    };
}
`

// bareNixFleet is a place for a fleet: the executable, a store to build in, a cache,
// and an address for the control plane.
func bareNixFleet(t *testing.T) *nixFleet {
	nix := testnix.Find(t)
	dir := t.TempDir()
	f := &nixFleet{t: t, nix: nix, dir: dir, build: nix.NewStore(t), cache: nix.NewCache(t), hosts: map[string]*nixHost{}}
	f.address = freeAddress(t)
	return f
}

// newNixFleet makes everything but the first release. channels maps hosts to
// their channel.
func newNixFleet(t *testing.T, channels map[string]string) *nixFleet {
	f := bareNixFleet(t)
	f.foreign = f.nix.NewKey(t, "cache."+nixSuffix+"-1") // the right name on the wrong key
	f.mustRun(f.dir, "keygen", "all", "--dir", f.key(""), "--suffix", nixSuffix, "--server", "127.0.0.1")
	for name := range channels {
		f.hosts[name] = f.newHost(name)
	}
	f.repository(channels)
	f.connect()
	return f
}

// connect makes the operator's client.
func (f *nixFleet) connect() {
	f.t.Helper()
	cert, err := tls.LoadX509KeyPair(f.key("operator.pem"), f.key("operator.key"))
	if err != nil {
		f.t.Fatal(err)
	}
	ca, err := os.ReadFile(f.key("fleet-root.cert.pem"))
	if err != nil {
		f.t.Fatal(err)
	}
	f.client, err = client.New(client.Config{
		BaseURL: "https://" + f.address, CAPEM: ca, Certificate: func() (*tls.Certificate, error) { return &cert, nil },
	})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(f.client.CloseIdle)
}

func (f *nixFleet) key(name string) string { return filepath.Join(f.dir, "keys", name) }
func (f *nixFleet) checkout(name string) string {
	return filepath.Join(f.dir, "fleet", filepath.FromSlash(name))
}

func (f *nixFleet) write(path, text string, mode os.FileMode) {
	f.t.Helper()
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.WriteFile(path, []byte(text), mode)
	}
	if err != nil {
		f.t.Fatal(err)
	}
}

// newHost makes a machine that runs a first system which nobody released.
func (f *nixFleet) newHost(name string) *nixHost {
	t := f.t
	h := f.installed(name)
	var err error
	if h.key, err = pki.GenerateKey(pki.AlgorithmEd25519); err != nil {
		t.Fatal(err)
	}
	private, err := h.key.MarshalOpenSSH("root@" + name)
	if err != nil {
		t.Fatal(err)
	}
	f.write(filepath.Join(h.dir, "ssh_host_ed25519_key"), string(private), 0o600)
	h.pubkey = pki.FormatHostKey(h.key.Crypto().Public().(ed25519.PublicKey), "")
	token := f.mustRun(f.dir, "mint-token", "--hostname", name, "--host-pubkey", h.pubkey, "--org-root-key",
		f.key("org-root.key"))
	f.write(filepath.Join(h.dir, "token.json"), token, 0o600)
	return h
}

// installed is a machine that was just installed, without a key of its own.
func (f *nixFleet) installed(name string) *nixHost {
	t := f.t
	h := &nixHost{name: name, root: testnix.TempDir(t), dir: filepath.Join(f.dir, "hosts", name),
		url: "https://" + f.address}
	var err error
	first := f.build.Build(t, testnix.Spec{Name: "nixos-system-" + name + "-installed"})
	f.nix.Run(t, "nix", "copy", "--store", f.build.Dir, "--to", h.root, "--no-check-sigs", "/nix/store/"+first)
	if h.host, err = nixops.NewHost(f.nix.Config(h.root, nil)); err != nil {
		t.Fatal(err)
	}
	if err := h.host.SetProfile(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(h.root, "run"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := h.host.RestoreCurrent(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	return h
}

// repository makes the forge and a checkout whose flake declares the hosts.
func (f *nixFleet) repository(channels map[string]string) {
	f.t.Helper()
	f.git("init", "--quiet", "--bare", "--initial-branch=main", filepath.Join(f.dir, "forge.git"))
	f.git("init", "--quiet", "--initial-branch=main", f.checkout(""))
	f.git("-C", f.checkout(""), "remote", "add", "origin", filepath.Join(f.dir, "forge.git"))
	lib, err := filepath.Abs("../../nixops/lib")
	if err != nil {
		f.t.Fatal(err)
	}
	model, err := os.ReadFile("../../nixops/testnix/model.sh")
	if err != nil {
		f.t.Fatal(err)
	}
	system := map[string]string{"amd64": "x86_64-linux", "arm64": "aarch64-linux"}[runtime.GOARCH]
	var hosts, declared strings.Builder
	seen := map[string]bool{}
	for name, channel := range channels {
		fmt.Fprintf(&hosts, "    %s = { system = %q; channel = %q; pubkey = %q; };\n", name, system, channel,
			f.hosts[name].pubkey)
		if !seen[channel] {
			fmt.Fprintf(&declared, "    %s.rolloutPolicy = \"now\";\n", channel)
			seen[channel] = true
		}
	}
	f.write(f.checkout("flake.nix"), fmt.Sprintf(nixFlake, lib), 0o644)
	f.write(f.checkout("fleet.nix"), "{\n  hosts = {\n"+hosts.String()+"  };\n  channels = {\n"+declared.String()+
		"  };\n  rolloutPolicies.now = { };\n}\n", 0o644)
	f.write(f.checkout("switch-to-configuration"), string(model), 0o755)
	f.edit("zero", slices.Collect(maps.Keys(channels))...)
}

// edit changes the configuration of hosts and pushes the commit.
func (f *nixFleet) edit(text string, names ...string) {
	f.t.Helper()
	for _, name := range names {
		f.write(f.checkout("hosts/"+name), "release "+text+"\n", 0o644)
	}
	f.git("-C", f.checkout(""), "add", "-A")
	if _, err := os.Stat(f.checkout("flake.lock")); err != nil {
		f.command(f.checkout(""), filepath.Join(f.nix.Bin(), "nix"), "flake", "lock")
		f.git("-C", f.checkout(""), "add", "-A")
	}
	f.commit(f.checkout(""), "feat: "+text)
}

func (f *nixFleet) commit(dir, message string) {
	f.t.Helper()
	f.git("-C", dir, "-c", "user.name=jo", "-c", "user.email=jo@fleet.test", "commit", "--quiet", "-m", message)
	f.git("-C", dir, "push", "--quiet", "origin", "HEAD:main")
}

// release runs the pipeline in the checkout. How the closures are pushed is up
// to the caller.
func (f *nixFleet) release(push ...string) {
	f.t.Helper()
	out := f.mustRun(f.checkout(""), append(f.releaseWords(), push...)...)
	f.t.Log(strings.ReplaceAll(strings.TrimSpace(out), "\n", "; "))
	if err := f.client.Poke(f.t.Context()); err != nil {
		// Before the first release there is no control plane to poke.
		f.t.Logf("poke: %v", err)
	}
}

func (f *nixFleet) releaseWords() []string {
	return []string{
		"release", "--sign-key", f.key("release.key"), "--trust-file", f.key("trust.json"), "--git-push", "origin:main",
		"--git-user-name", "ci", "--git-user-email", "ci@fleet.test", "--confirm-window", confirmWindow.String(),
	}
}

// refused wants a release to fail with these words before it has signed or pushed anything.
func (f *nixFleet) refused(words string, push ...string) {
	f.t.Helper()
	tip := f.command(f.dir, "git", "-C", filepath.Join(f.dir, "forge.git"), "rev-parse", "main")
	ctx, cancel := context.WithTimeout(f.t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, append(f.releaseWords(), push...)...)
	cmd.Dir, cmd.Env = f.checkout(""), f.environment()
	out, err := cmd.CombinedOutput()
	if code := cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(string(out), words) ||
		!strings.Contains(string(out), "--no-verify-cache") {
		f.t.Fatalf("release %s: %v, without %q:\n%s", strings.Join(push, " "), err, words, out)
	}
	if now := f.command(f.dir, "git", "-C", filepath.Join(f.dir, "forge.git"), "rev-parse", "main"); now != tip {
		f.t.Errorf("the refused release was pushed: %s", now)
	}
}

func (f *nixFleet) cacheDest() string { return "file://" + f.cache.Dir + "?compression=none" }

// properly pushes signed by the cache's own key.
func (f *nixFleet) properly() []string {
	return []string{"--copy-to", f.cacheDest(), "--cache-key", f.key("cache.key")}
}

// declared is the closure the release in the checkout names for a host.
func (f *nixFleet) declared(name string) string {
	f.t.Helper()
	var doc struct {
		Hosts map[string]struct {
			ClosureHash string `json:"closureHash"`
		} `json:"hosts"`
	}
	data, err := os.ReadFile(f.checkout("releases/fleet.resolved.json"))
	if err == nil {
		err = json.Unmarshal(data, &doc)
	}
	if err != nil || doc.Hosts[name].ClosureHash == "" {
		f.t.Fatalf("closure declared for %s: %v", name, err)
	}
	return doc.Hosts[name].ClosureHash
}

func (f *nixFleet) git(args ...string) {
	f.t.Helper()
	f.command(f.dir, "git", args...)
}

func (f *nixFleet) mustRun(dir string, args ...string) string {
	f.t.Helper()
	return f.command(dir, binary, args...)
}

// environment makes every Nix below use the store that closures are built in.
func (f *nixFleet) environment() []string {
	return append(os.Environ(), "PATH="+f.nix.Bin()+":"+filepath.Dir(binary)+":"+os.Getenv("PATH"),
		"NIX_CONF_DIR="+f.nix.ConfDir(), "NIX_REMOTE="+f.build.Dir,
		"NIX_STATE_DIR="+f.build.Dir+"/nix/var/nix", "XDG_CACHE_HOME="+filepath.Join(f.dir, "xdg"), "HOME="+f.dir,
		"GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null")
}

func (f *nixFleet) command(dir, program string, args ...string) string {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir, cmd.Env = dir, f.environment()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		f.t.Fatalf("%s %s: %v\n%s%s", filepath.Base(program), strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String()
}

// start runs a role until the test ends or stop is called; its words go to a file.
func (f *nixFleet) start(log string, args ...string) (stop func()) {
	f.t.Helper()
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		f.t.Fatal(err)
	}
	cmd := exec.Command(binary, args...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = append(os.Environ(), "HOME="+f.dir)
	if err := cmd.Start(); err != nil {
		f.t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		timer := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
		cmd.Wait()
		timer.Stop()
		out.Close()
		if f.t.Failed() {
			f.t.Logf("the end of %s:\n%s", filepath.Base(log), nixTail(log))
		}
	})
	f.t.Cleanup(stop)
	return stop
}

func nixTail(file string) string {
	data, _ := os.ReadFile(file)
	return string(data[max(0, len(data)-4000):])
}

func (f *nixFleet) cpLog() string { return filepath.Join(f.dir, "cp.log") }

func (f *nixFleet) startControlPlane() {
	f.t.Helper()
	f.start(f.cpLog(), "cp", "serve", "--listen", f.address, "--tls-cert", f.key("server.cert.pem"), "--tls-key",
		f.key("server.key.pem"),
		"--client-ca", f.key("client-ca.pem"), "--fleet-ca-cert", f.key("issuing-ca.cert.pem"), "--fleet-ca-key",
		f.key("issuing-ca.key.pem"),
		"--agent-cn-suffix", nixSuffix, "--trust-file", f.key("trust.json"), "--state-dir", filepath.Join(f.dir, "cp"),
		"--db-path", filepath.Join(f.dir, "cp", "state.db"), "--source", "git+file://"+filepath.Join(f.dir, "forge.git")+
			"#main",
		"--poll-interval", "1s", "--checkin-interval", "1s", "--confirm-deadline-secs",
		fmt.Sprint(int(confirmWindow.Seconds())))
	f.until("the control plane answers", func() string {
		if _, err := f.client.Whoami(f.t.Context()); err != nil {
			return err.Error()
		}
		return ""
	})
}

func (f *nixFleet) hostFlags(h *nixHost) []string {
	return []string{"--state-dir", filepath.Join(h.dir, "state"), "--root", h.root, "--supervisor", "process",
		"--nix-bin-dir", f.nix.Bin(), "--nix-conf-dir", f.nix.ConfDir()}
}

func (h *nixHost) log() string { return filepath.Join(h.dir, "agent.log") }

// switches counts the activations that the agent began.
func (h *nixHost) switches(t testing.TB) int {
	t.Helper()
	log, err := os.ReadFile(h.log())
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(log), "switch started")
}

func (f *nixFleet) startAgent(h *nixHost, more ...string) {
	f.t.Helper()
	trust, _, err := pki.LoadTrust(f.key("trust.json"))
	if err != nil {
		f.t.Fatal(err)
	}
	key := filepath.Join(h.dir, "ssh_host_ed25519_key")
	args := append([]string{"agent", "run", "--control-plane-url", h.url, "--machine-id", h.name, "--trust-file",
		f.key("trust.json"),
		"--ca-cert", f.key("fleet-root.cert.pem"), "--client-cert", filepath.Join(h.dir, "agent-cert.pem"),
		"--ssh-host-key-file", key,
		"--bootstrap-token-file", filepath.Join(h.dir, "token.json"), "--allow-volatile-state", "--agent-outside-closure",
		"--poll-interval", "1", "--settle-time", "300ms", "--substituters", f.cache.URL, "--trusted-public-keys",
		trust.CacheKeys[0],
	}, f.hostFlags(h)...)
	h.stop = f.start(h.log(), append(args, more...)...)
}

// nixStatus is the part of `agent status --json` that is looked at.
type nixStatus struct {
	Agent *struct {
		Waiting string `json:"waiting"`
		Stale   string `json:"stale"`
	} `json:"agent"`
	Current   string `json:"current"`
	Profile   string `json:"profile"`
	Confirmed *struct {
		Closure string `json:"closure"`
	} `json:"confirmed"`
	Problems []string `json:"problems"`
}

func (f *nixFleet) status(h *nixHost) nixStatus {
	f.t.Helper()
	var s nixStatus
	out := f.mustRun(f.dir, append([]string{"agent", "status", "--json"}, f.hostFlags(h)...)...)
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		f.t.Fatalf("agent status --json: %v\n%s", err, out)
	}
	return s
}

// runs says from outside what the machine's links lead to.
func (h *nixHost) runs(t testing.TB) (current, profile string) {
	t.Helper()
	current, err := h.host.CurrentSystem(t.Context())
	if err == nil {
		profile, err = h.host.Profile(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	return current, profile
}

// until waits for a condition, which says what it still lacks.
func (f *nixFleet) until(what string, lacks func() string) {
	f.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		missing := lacks()
		if missing == "" {
			return
		}
		if time.Now().After(deadline) {
			f.t.Fatalf("%s: not within time: %s", what, missing)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// converged waits until each host runs what the release declares and has
// confirmed it, by its links, by its own status and by the control plane's view.
func (f *nixFleet) converged(names ...string) {
	f.t.Helper()
	for _, name := range names {
		h, want := f.hosts[name], f.declared(name)
		f.until(name+" runs "+want, func() string {
			if current, profile := h.runs(f.t); current != want || profile != want {
				return fmt.Sprintf("it runs %s, profile %s", current, profile)
			}
			return ""
		})
		f.until(name+" has confirmed", func() string {
			s := f.status(h)
			if s.Confirmed == nil || s.Confirmed.Closure != want || len(s.Problems) > 0 {
				return fmt.Sprintf("status %+v", s)
			}
			return ""
		})
		f.until("the control plane knows that "+name+" converged", func() string {
			view, err := f.client.Hosts(f.t.Context())
			if err != nil {
				return err.Error()
			}
			for _, entry := range view.Hosts {
				if entry.Hostname == name && entry.Converged && entry.CurrentClosureHash != nil &&
					*entry.CurrentClosureHash == want {
					return ""
				}
			}
			return "not converged"
		})
	}
}
