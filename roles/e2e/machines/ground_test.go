package machines

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/nixops/testnix"
	"nixfleet/pki"
	"nixfleet/roles/protocol"
)

// ground is what all machines share: keys, a forge, a checkout that CI releases from,
// a store to build in, a signed cache over http, the network, and control planes.
type ground struct {
	t      testing.TB
	nix    testnix.Nix
	binary string
	base   string
	dir    string
	net    *network
	store  *testnix.Store
	cache  *testnix.Cache
	main   *controlPlane
	agent  string // a file: the nixfleet of the first systems
	other  string // another nixfleet, as a newer release brings one
	broken string // one that does nothing

	cacheKey string // public

	mu       sync.Mutex
	agents   map[string]string // file -> its store path
	hosts    map[string]*fleet.Host
	channels map[string]string // host's channel -> its rollout policy
	closures map[string]string
	waiting  []chan error // for the next release
	hooks    map[string]func(http.ResponseWriter, *http.Request) bool
	ports    int

	building sync.Mutex    // one nix-build at a time; they share two cores
	setup    chan struct{} // how many machines are being made at a time
	rows     []row
}

const suffix = "machines.test"

func newGround(t testing.TB, binary, base string, nix testnix.Nix) *ground {
	g := &ground{
		t: t, nix: nix, binary: binary, base: base, dir: t.TempDir(), net: newNetwork(t), store: nix.NewStore(t), cache: nix.NewCache(t),
		agents: map[string]string{}, hosts: map[string]*fleet.Host{}, channels: map[string]string{}, closures: map[string]string{},
		hooks: map[string]func(http.ResponseWriter, *http.Request) bool{}, ports: 8443, setup: make(chan struct{}, 2),
	}
	g.run(binary, "keygen", "all", "--dir", g.path("keys"), "--suffix", suffix, "--server", hubAddress)
	g.run("git", "init", "-q", "--bare", "-b", "main", g.path("forge.git"))
	g.run("git", "clone", "-q", g.path("forge.git"), g.path("ci"))
	must(t, os.WriteFile(g.path("ci/flake.lock"), []byte("0\n"), 0o644))
	g.run("git", "-C", g.path("ci"), "add", "-A")
	g.run("git", "-C", g.path("ci"), "commit", "-qm", "first")
	g.run("git", "-C", g.path("ci"), "push", "-q", "origin", "HEAD:main")
	g.serveCache()
	return g
}

// prepare makes what the scenarios begin with: two agents that differ, the first
// release of an empty fleet, and the CI that makes the others.
func (g *ground) prepare() {
	t := g.t
	code, err := os.ReadFile(g.binary)
	must(t, err)
	g.agent, g.other, g.broken = g.path("agent-1"), g.path("agent-2"), g.path("agent-broken")
	must(t, os.WriteFile(g.broken, []byte("#!/bin/sh\nexit 1\n"), 0o755))
	// Bytes behind an executable change nothing but its store path.
	must(t, os.WriteFile(g.agent, append(slices.Clip(code), "one"...), 0o755))
	must(t, os.WriteFile(g.other, append(slices.Clip(code), "two"...), 0o755))
	trust, _, err := pki.LoadTrust(g.path("keys/trust.json"))
	must(t, err)
	g.cacheKey = trust.CacheKeys[0]
	must(t, g.publish(nil, nil, nil))
	go g.releases()
}

func (g *ground) cacheSecret() testnix.Key {
	return testnix.Key{Public: g.cacheKey, SecretFile: g.path("keys/cache.key")}
}

func (g *ground) path(name string) string { return filepath.Join(g.dir, filepath.FromSlash(name)) }

func (g *ground) read(name string) string {
	g.t.Helper()
	data, err := os.ReadFile(g.path(name))
	must(g.t, err)
	return string(data)
}

func (g *ground) try(program string, args ...string) (string, error) {
	cmd := exec.Command(program, args...)
	cmd.Dir = g.dir
	cmd.Env = append(os.Environ(), "HOME="+g.dir, "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1", "GIT_AUTHOR_NAME=ci",
		"GIT_AUTHOR_EMAIL=ci@"+suffix, "GIT_COMMITTER_NAME=ci", "GIT_COMMITTER_EMAIL=ci@"+suffix)
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("%s %s: %w\n%s%s", filepath.Base(program), strings.Join(args, " "), err, out, said.String())
	}
	return string(out), nil
}

func (g *ground) run(program string, args ...string) string {
	g.t.Helper()
	out, err := g.try(program, args...)
	must(g.t, err)
	return out
}

// cachePort is where the machines find the cache.
const cachePort = "8080"

// serveCache serves the cache's directory in the hub. Requests of a machine go by its
// own hook first.
func (g *ground) serveCache() {
	files := http.FileServer(http.Dir(g.cache.Dir))
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from, _, _ := strings.Cut(r.RemoteAddr, ":")
		g.mu.Lock()
		hook := g.hooks[from]
		g.mu.Unlock()
		r = r.WithContext(context.WithValue(r.Context(), cacheDir{}, g.cache.Dir))
		if hook == nil || !hook(w, r) {
			files.ServeHTTP(w, r)
		}
	})}
	listener := g.net.listen(g.t, hubAddress+":"+cachePort)
	go server.Serve(listener)
	g.t.Cleanup(func() { server.Close() })
}

// hook has a machine's requests to the cache answered otherwise; nil ends that.
func (g *ground) hook(m *machine, answer func(http.ResponseWriter, *http.Request) bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.hooks[m.address] = answer
}

// declare adds a host with a channel of its own, so that no scenario halts another.
func (g *ground) declare(name, channel, pubkey string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.hosts[name] = &fleet.Host{System: "x86_64-linux", Tags: []string{}, Channel: channel, Pubkey: &pubkey}
}

// release publishes closures for hosts. Scenarios that ask at the same time share one
// release, as the commits of a busy day would.
func (g *ground) release(t testing.TB, closures map[string]string) {
	t.Helper()
	done := make(chan error, 1)
	g.mu.Lock()
	maps.Copy(g.closures, closures)
	g.waiting = append(g.waiting, done)
	g.mu.Unlock()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// releases is CI: it makes one release after the other while there is something new.
func (g *ground) releases() {
	for {
		time.Sleep(300 * time.Millisecond)
		g.mu.Lock()
		waiting := g.waiting
		g.waiting = nil
		hosts, closures, channels := maps.Clone(g.hosts), maps.Clone(g.closures), maps.Clone(g.channels)
		g.mu.Unlock()
		if g.t.Context().Err() != nil {
			for _, done := range waiting {
				done <- g.t.Context().Err()
			}
			return
		}
		if len(waiting) == 0 {
			continue
		}
		err := g.publish(hosts, closures, channels)
		for _, done := range waiting {
			done <- err
		}
	}
}

func (g *ground) publish(hosts map[string]*fleet.Host, closures, policies map[string]string) error {
	declared := &fleet.Fleet{
		SchemaVersion: 1, Meta: fleet.Meta{SchemaVersion: 1}, Hosts: map[string]*fleet.Host{}, Waves: map[string][]fleet.Wave{}, Channels: map[string]fleet.Channel{},
		RolloutPolicies: map[string]fleet.Policy{
			"halt":     {Strategy: "all-at-once", Waves: []fleet.PolicyWave{}, OnHealthFailure: fleet.OnFailureHalt},
			"rollback": {Strategy: "all-at-once", Waves: []fleet.PolicyWave{}, OnHealthFailure: fleet.OnFailureRollback},
		},
	}
	paths := map[string]string{}
	for name, closure := range closures {
		host := hosts[name]
		declared.Hosts[name] = host
		paths[name] = "/nix/store/" + closure
		policy := policies[host.Channel]
		if policy == "" {
			policy = "halt"
		}
		declared.Channels[host.Channel] = fleet.Channel{
			RolloutPolicy: policy, ReconcileIntervalMinutes: 1, FreshnessWindow: 120, SigningIntervalMinutes: 60,
			Compliance: fleet.Compliance{Frameworks: []string{}, Mode: fleet.ModeDisabled},
		}
		declared.Waves[host.Channel] = []fleet.Wave{}
	}
	for file, value := range map[string]any{"declared.json": declared, "closures.json": paths} {
		doc, err := pki.Marshal(value)
		if err == nil {
			err = os.WriteFile(g.path(file), doc, 0o644)
		}
		if err != nil {
			return err
		}
	}
	_, err := g.try(g.binary, "release", "--build-flake", g.path("ci"), "--release-dir", g.path("ci/releases"), "--fleet-file", g.path("declared.json"),
		"--closures", g.path("closures.json"), "--sign-key", g.path("keys/release.key"), "--trust-file", g.path("keys/trust.json"),
		"--git-push", "origin:main", "--git-user-name", "ci", "--git-user-email", "ci@"+suffix, "--confirm-window", "60s")
	return err
}

// controlPlane is one process with a state of its own; all follow the same forge.
type controlPlane struct {
	g      *ground
	name   string
	port   int
	client *protocol.Client
	mu     sync.Mutex
	cmd    *exec.Cmd
}

func (g *ground) newControlPlane(t testing.TB, name string) *controlPlane {
	t.Helper()
	g.mu.Lock()
	g.ports++
	c := &controlPlane{g: g, name: name, port: g.ports}
	g.mu.Unlock()
	cert, err := tls.LoadX509KeyPair(g.path("keys/operator.pem"), g.path("keys/operator.key"))
	must(t, err)
	c.client, err = protocol.NewClient(protocol.ClientConfig{
		BaseURL: c.url(), CAPEM: []byte(g.read("keys/fleet-root.cert.pem")), Timeout: 10 * time.Second, Dial: g.net.dial,
		Certificate: func() (*tls.Certificate, error) { return &cert, nil },
	})
	must(t, err)
	must(t, os.MkdirAll(g.path("cp-"+name), 0o700))
	t.Cleanup(func() {
		c.kill()
		c.client.CloseIdle()
	})
	return c
}

func (c *controlPlane) url() string { return fmt.Sprintf("https://%s:%d", hubAddress, c.port) }

// start runs it in the hub's namespace.
func (c *controlPlane) start(t testing.TB) {
	t.Helper()
	g, dir := c.g, c.g.path("cp-"+c.name)
	log, err := os.OpenFile(dir+"/log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	must(t, err)
	defer log.Close()
	cmd := exec.Command("nsenter", "--net=/run/netns/"+g.net.hub, g.binary, "cp", "serve", "--listen", fmt.Sprintf("%s:%d", hubAddress, c.port),
		"--tls-cert", g.path("keys/server.cert.pem"), "--tls-key", g.path("keys/server.key.pem"), "--client-ca", g.path("keys/client-ca.pem"),
		"--fleet-ca-cert", g.path("keys/issuing-ca.cert.pem"), "--fleet-ca-key", g.path("keys/issuing-ca.key.pem"), "--agent-cn-suffix", suffix,
		"--trust-file", g.path("keys/trust.json"), "--state-dir", dir, "--db-path", dir+"/state.db", "--source", "git+file://"+g.path("forge.git")+"#main",
		"--poll-interval", "1s", "--checkin-interval", "2s", "--confirm-deadline-secs", "60")
	cmd.Stdout, cmd.Stderr, cmd.Env, cmd.SysProcAttr = log, log, append(os.Environ(), "HOME="+g.dir), withUs
	must(t, cmd.Start())
	c.mu.Lock()
	c.cmd = cmd
	c.mu.Unlock()
	until(t, time.Minute, "control plane "+c.name+" answers", func() string {
		if _, err := c.client.Whoami(t.Context()); err != nil {
			return err.Error()
		}
		return ""
	})
}

// kill is SIGKILL, as by the kernel when memory is short.
func (c *controlPlane) kill() {
	c.mu.Lock()
	cmd := c.cmd
	c.cmd = nil
	c.mu.Unlock()
	if cmd != nil {
		cmd.Process.Signal(syscall.SIGKILL)
		cmd.Wait()
	}
	c.client.CloseIdle()
}

// host is what the control plane says of one.
func (c *controlPlane) host(t testing.TB, name string) (protocol.HostEntry, error) {
	view, err := c.client.Hosts(t.Context())
	if err != nil {
		return protocol.HostEntry{}, err
	}
	for _, entry := range view.Hosts {
		if entry.Hostname == name {
			return entry, nil
		}
	}
	return protocol.HostEntry{}, fmt.Errorf("%s is not declared", name)
}

// reports are the events that a host reported, newest first.
func (c *controlPlane) reports(t testing.TB, name string) []protocol.HostReport {
	view, err := c.client.HostReports(t.Context(), 1000)
	if err != nil {
		return nil
	}
	var mine []protocol.HostReport
	for _, r := range view.Reports {
		if r.Hostname == name {
			mine = append(mine, r)
		}
	}
	return mine
}

// until waits for a condition, which says what it still lacks.
func until(t testing.TB, limit time.Duration, what string, lacks func() string) {
	t.Helper()
	for deadline := time.Now().Add(limit); ; time.Sleep(200 * time.Millisecond) {
		missing := lacks()
		if missing == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s: %s", what, limit, missing)
		}
	}
}

// newKey makes a host's ssh key.
func newKey(t testing.TB, name string) (private, public string) {
	t.Helper()
	key, err := pki.GenerateKey(pki.AlgorithmEd25519)
	must(t, err)
	text, err := key.MarshalOpenSSH("root@" + name)
	must(t, err)
	return string(text), pki.FormatHostKey(key.Crypto().Public().(ed25519.PublicKey), "")
}
