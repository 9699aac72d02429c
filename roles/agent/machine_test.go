package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"nixfleet/nixops"
	"nixfleet/nixops/sim"
	"nixfleet/pki"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/agent/undo"
)

const (
	testHost   = "web-01"
	testSuffix = "fleet.test"
	before     = "00000000000000000000000000000000-nixos-system-web-01-0"
	target     = "11111111111111111111111111111111-nixos-system-web-01-1"
	another    = "22222222222222222222222222222222-nixos-system-web-01-2"
)

var good = map[string]sim.Closure{before: {}, target: {}, another: {}}

func with(bad sim.Closure) map[string]sim.Closure {
	return map[string]sim.Closure{before: {}, target: bad, another: {}}
}

// machine is one simulated host in a directory of its own.
type machine struct {
	t   *testing.T
	dir string
	sim *sim.Host
	p   *plane

	adjust func(*Config)
	broken string // what an ailing machine cannot do
}

func newMachine(t *testing.T, p *plane, closures map[string]sim.Closure) *machine {
	t.Helper()
	dir := t.TempDir()
	for _, sub := range []string{"cache", "host"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range closures {
		c.Agent, c.TrustJSON, c.Cache.Size = "self", string(p.trust), 1
		if c.Script.SwitchTime == 0 {
			c.Script.SwitchTime = 2 * time.Second
		}
		if err := sim.WriteClosure(filepath.Join(dir, "cache"), name, c); err != nil {
			t.Fatal(err)
		}
	}
	key, err := p.hostKey.MarshalOpenSSH("")
	if err != nil {
		t.Fatal(err)
	}
	csrText, err := pki.NewCSR(p.hostKey.Crypto(), testHost)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := pki.ParseCSR(csrText)
	if err != nil {
		t.Fatal(err)
	}
	cert, _, err := p.issuing.IssueAgent(csr, testHost, testSuffix, time.Now(), 5000*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"key": key, "cert/agent.pem": cert, "trust.json": p.trust,
		"ca.pem": p.rootPEM} {
		path := filepath.Join(dir, "host", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	m := &machine{t: t, dir: dir, p: p}
	m.open()
	if err := m.sim.Install(before); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *machine) path(name string) string { return filepath.Join(m.dir, "host", name) }

// stateDirectory is what systemd makes before the agent's first start.
func (m *machine) stateDirectory() {
	m.t.Helper()
	if err := os.MkdirAll(m.path("state"), 0o700); err != nil {
		m.t.Fatal(err)
	}
}

// open boots the machine's hardware: its deadline runs whether an agent does or not.
func (m *machine) open() {
	m.t.Helper()
	sim, err := sim.New(m.path("machine"), filepath.Join(m.dir, "cache"))
	if err != nil {
		m.t.Fatal(err)
	}
	sim.Alone()
	m.sim = sim
	u := m.undoer()
	sim.OnDeadline(func(d nixops.Deadline) {
		if err := u.Insist(m.t.Context(), d.Unit); err != nil && m.t.Context().Err() == nil {
			m.t.Errorf("deadline: %v", err)
		}
	})
	m.t.Cleanup(sim.Close)
}

func (m *machine) undoer() *undo.Undoer {
	return &undo.Undoer{Host: m.sim, Dir: journal.Directory(m.path("state")), Log: zerolog.Nop()}
}

func (m *machine) config(host nixops.Host) Config {
	c := Config{
		URL: "https://cp", MachineID: testHost, TrustFile: m.path("trust.json"), CACert: m.path("ca.pem"),
		ClientCert: m.path("cert/agent.pem"),
		ClientKey:  m.path("key"), SSHHostKey: m.path("key"), StateDir: m.path("state"), AllowVolatile: true,
		PollInterval: time.Duration(m.p.pace) * time.Second,
		Host:         host, Dial: m.p.net.dial, Log: zerolog.Nop(),
	}
	if m.adjust != nil {
		m.adjust(&c)
	}
	return c
}

// live runs what the machine runs: an agent, and at each boot the guard and then
// an agent, unless the running closure's agent is broken.
func (m *machine) live(host nixops.Host) (stop func()) {
	m.t.Helper()
	var mu sync.Mutex
	var end func()
	// An agent that goes on where it was killed may reboot at once.
	mu.Lock()
	defer mu.Unlock()
	m.sim.OnBoot(func(string) {
		mu.Lock()
		defer mu.Unlock()
		if end == nil {
			return
		}
		end()
		end = func() {}
		if err := m.undoer().Guard(context.Background()); err != nil {
			m.t.Errorf("guard: %v", err)
		}
		if m.sim.AgentStarts() {
			end = m.start(host)
		}
	})
	end = m.start(host)
	return func() {
		mu.Lock()
		defer mu.Unlock()
		end()
		end = nil
	}
}

func (m *machine) local() status {
	m.t.Helper()
	var s status
	if err := journal.Directory(m.path("state")).Read(statusName, &s); err != nil {
		m.t.Error(err)
	}
	return s
}

func (m *machine) boot() string {
	m.t.Helper()
	id, err := m.sim.BootID(context.Background())
	if err != nil {
		m.t.Error(err)
	}
	return id
}

// start runs an agent; the returned function stops it.
func (m *machine) start(host nixops.Host) (stop func()) {
	m.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, m.config(host)) }()
	return func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			m.t.Errorf("agent: %v", err)
		}
	}
}

// where is what the machine runs, has set, and would boot.
func (m *machine) where() [3]string {
	m.t.Helper()
	var out [3]string
	for i, read := range []func(context.Context) (string, error){m.sim.CurrentSystem, m.sim.Profile, m.sim.BootDefault} {
		var err error
		if out[i], err = read(context.Background()); err != nil {
			m.t.Fatal(err)
		}
	}
	return out
}

func all(closure string) [3]string { return [3]string{closure, closure, closure} }
