package machines

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"fmt"
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

	"nixfleet/nixops/testnix"
	"nixfleet/pki"
	"nixfleet/roles/protocol"
	"nixfleet/roles/protocol/client"
)

// ground is what all machines share: keys, forges, a store to build in, a signed cache
// over http, the network, and control planes.
type ground struct {
	t      testing.TB
	nix    testnix.Nix
	binary string
	base   string
	dir    string
	net    *network
	store  *testnix.Store
	cache  *testnix.Cache
	main   *controlPlane // of hosts with time enough to confirm on a slow machine, too
	brief  *controlPlane // of those whose window is to be waited out
	agent  string        // a file: the nixfleet of the first systems
	other  string        // another nixfleet, as a newer release brings one
	broken string        // one that does nothing

	cacheKey string // public

	mu     sync.Mutex
	agents map[string]string // file -> its store path
	hooks  map[string]func(http.ResponseWriter, *http.Request) bool
	ports  int

	building sync.Mutex    // one nix-build at a time; they share two cores
	setup    chan struct{} // how many machines are being made at a time
	rows     []row
}

const suffix = "machines.test"

func newGround(t testing.TB, binary, base string, nix testnix.Nix) *ground {
	g := &ground{
		t: t, nix: nix, binary: binary, base: base, dir: t.TempDir(), net: newNetwork(t), store: nix.NewStore(t),
		cache:  nix.NewCache(t),
		agents: map[string]string{}, hooks: map[string]func(http.ResponseWriter, *http.Request) bool{}, ports: 8443,
		setup: make(chan struct{}, 2),
	}
	g.run(binary, "keygen", "all", "--dir", g.path("keys"), "--suffix", suffix, "--server", hubAddress)
	g.serveCache()
	return g
}

// The windows that hosts have to confirm: the shortest there is, and one that is used up
// only where nothing goes on any more.
const (
	briefWindow = time.Minute
	longWindow  = 5 * time.Minute
)

// prepare makes what the scenarios begin with: agents that differ, and two fleets with a
// control plane each.
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
	g.main = g.newControlPlane(t, "main", g.newForge("fleet", longWindow))
	g.brief = g.newControlPlane(t, "brief", g.newForge("brief-fleet", briefWindow))
	g.main.start(t)
	g.brief.start(t)
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
	cmd.Env = append(os.Environ(), "HOME="+g.dir, "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1",
		"GIT_AUTHOR_NAME=ci",
		"GIT_AUTHOR_EMAIL=ci@"+suffix, "GIT_COMMITTER_NAME=ci", "GIT_COMMITTER_EMAIL=ci@"+suffix)
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("%s %s: %w\n%s%s", filepath.Base(program), strings.Join(args, " "), err, out,
			said.String())
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

// controlPlane is one process with a state of its own; many follow the same forge.
type controlPlane struct {
	g      *ground
	name   string
	forge  *forge
	port   int
	client *client.Client
	mu     sync.Mutex
	cmd    *exec.Cmd
}

func (g *ground) newControlPlane(t testing.TB, name string, f *forge) *controlPlane {
	t.Helper()
	g.mu.Lock()
	g.ports++
	c := &controlPlane{g: g, name: name, forge: f, port: g.ports}
	g.mu.Unlock()
	cert, err := tls.LoadX509KeyPair(g.path("keys/operator.pem"), g.path("keys/operator.key"))
	must(t, err)
	c.client, err = client.New(client.Config{
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
	cmd := exec.Command("nsenter", "--net=/run/netns/"+g.net.hub, g.binary, "cp", "serve", "--listen",
		fmt.Sprintf("%s:%d", hubAddress, c.port),
		"--tls-cert", g.path("keys/server.cert.pem"), "--tls-key", g.path("keys/server.key.pem"), "--client-ca",
		g.path("keys/client-ca.pem"),
		"--fleet-ca-cert", g.path("keys/issuing-ca.cert.pem"), "--fleet-ca-key", g.path("keys/issuing-ca.key.pem"),
		"--agent-cn-suffix", suffix,
		"--trust-file", g.path("keys/trust.json"), "--state-dir", dir, "--db-path", dir+"/state.db", "--source",
		"git+file://"+c.forge.repository()+"#main",
		"--poll-interval", "1s", "--checkin-interval", "2s", "--confirm-deadline-secs",
		fmt.Sprint(int(c.forge.window.Seconds())))
	cmd.Stdout, cmd.Stderr, cmd.Env, cmd.SysProcAttr = log, log, append(os.Environ(), "HOME="+g.dir), withUs
	must(t, cmd.Start())
	c.mu.Lock()
	c.cmd = cmd
	c.mu.Unlock()
	until(t, "control plane "+c.name+" answers", func() string {
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
	view, err := c.client.HostReports(t.Context(), "", 1000)
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

// patience is how long anything is waited for that has to come. Nothing but a failure
// takes as long, on however slow a machine.
const patience = 6 * time.Minute

// look is how often; each look costs a machine of two cores some milliseconds.
const look = 400 * time.Millisecond

// until waits for a condition, which says what it still lacks.
func until(t testing.TB, what string, lacks func() string) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(look) {
		missing := lacks()
		if missing == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s: %s", what, patience, missing)
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
