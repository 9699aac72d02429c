package agent

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"nixfleet/nixops"
	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/protocol"
)

const (
	testHost   = "web-01"
	testSuffix = "fleet.test"
	before     = "00000000000000000000000000000000-nixos-system-web-01-0"
	target     = "11111111111111111111111111111111-nixos-system-web-01-1"
	another    = "22222222222222222222222222222222-nixos-system-web-01-2"
)

// pipes is a network inside a bubble.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), done: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { p.once.Do(func() { close(p.done) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipes"} }
func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case p.conns <- server:
		return client, nil
	case <-p.done:
		return nil, errors.New("connection refused")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// plane is a control plane that says what a test wants it to say.
type plane struct {
	t       *testing.T
	ci      *pki.PrivateKey
	root    *pki.CA
	issuing *pki.CA
	rootPEM []byte
	trust   []byte
	hostKey *pki.PrivateKey
	org     *pki.PrivateKey
	net     *pipes

	mu       sync.Mutex
	pair     *tls.Certificate
	head     []byte
	headSig  []byte
	leaf     []byte
	proof    protocol.Proof
	wanted   fleet.HostEntry
	id       string
	away     bool // answers nothing
	confirm  int  // status of confirms
	noTarget bool
	tamper   func(*protocol.CheckinResponse)
	slow     time.Duration // of every answer to a report
	confirms int
	reports  []protocol.ReportRequest
	lastSeen protocol.CheckinRequest
	v1       *v1Plane // nil: one of ours
	routes   map[string]http.HandlerFunc
	foreign  [2][]byte // head of channel "beta", which the host is not in, and its signature
}

func newPlane(t *testing.T) *plane {
	t.Helper()
	p := &plane{t: t, net: newPipes(), confirm: http.StatusNoContent}
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	for _, key := range []**pki.PrivateKey{&p.ci, &p.hostKey, &p.org} {
		*key, err = pki.GenerateKey(pki.AlgorithmEd25519)
		must(err)
	}
	p.root, _, err = pki.NewFleetRoot("root", time.Now(), 10000*time.Hour)
	must(err)
	p.issuing, _, err = p.root.NewIssuingCA(testSuffix, time.Now(), 10000*time.Hour)
	must(err)
	p.serve(time.Now())
	p.rootPEM = pemOf(p.root.Cert)
	public, orgPublic := p.ci.Public(), p.org.Public()
	p.trust, err = (&pki.Trust{SchemaVersion: 1, CIReleaseKey: pki.KeySlot{Current: &public}, OrgRootKey: &pki.KeySlot{Current: &orgPublic}}).Marshal()
	must(err)
	pool := x509.NewCertPool()
	pool.AddCert(p.issuing.Cert)
	server := &http.Server{Handler: p}
	go server.Serve(tls.NewListener(p.net, &tls.Config{GetCertificate: p.certificate, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: pool}))
	t.Cleanup(func() { server.Close() })
	p.release(target, time.Now())
	return p
}

// serve takes a certificate that is valid from a time on.
func (p *plane) serve(from time.Time) {
	p.t.Helper()
	key, err := pki.GenerateKey(pki.AlgorithmP256)
	var cert, keyPEM []byte
	if err == nil {
		cert, err = p.root.IssueServer([]string{"cp"}, key.Crypto().Public(), from, 10000*time.Hour)
	}
	if err == nil {
		keyPEM, err = key.MarshalPEM()
	}
	var pair tls.Certificate
	if err == nil {
		pair, err = tls.X509KeyPair(cert, keyPEM)
	}
	if err != nil {
		p.t.Fatal(err)
	}
	p.set(func() { p.pair = &pair })
}

func (p *plane) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pair, nil
}

// release signs that the host should run closure.
func (p *plane) release(closure string, at time.Time) {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	signed, commit := pki.At(at.Truncate(time.Second)), "c"
	pub := fmt.Sprintf("ssh-ed25519 %s", "x")
	f := &fleet.Fleet{
		SchemaVersion: 1, Meta: fleet.Meta{SchemaVersion: 1, SignedAt: &signed, CICommit: &commit},
		Hosts: map[string]*fleet.Host{testHost: {System: "x", Tags: []string{}, Channel: "stable", ClosureHash: &closure, Pubkey: &pub}},
		Channels: map[string]fleet.Channel{"stable": {RolloutPolicy: "p", FreshnessWindow: 120, SigningIntervalMinutes: 60,
			Compliance: fleet.Compliance{Frameworks: []string{}, Mode: fleet.ModeDisabled}}},
		RolloutPolicies: map[string]fleet.Policy{"p": {Strategy: "all-at-once", Waves: []fleet.PolicyWave{}, OnHealthFailure: fleet.OnFailureRollback}},
		Waves:           map[string][]fleet.Wave{"stable": {}},
	}
	m, _, err := fleet.Project(f, strings.Repeat("0", 64), "stable")
	if err != nil {
		p.t.Fatal(err)
	}
	id, _, err := fleet.RolloutID(m)
	if err != nil {
		p.t.Fatal(err)
	}
	head, err := fleet.ProjectHead(f, m, id, nil, 360*time.Second, 300*time.Second)
	if err != nil {
		p.t.Fatal(err)
	}
	p.sign(head)
	if p.v1 != nil {
		p.v1.release(p, m)
	}
	p.id, p.wanted, p.leaf = id, m.HostSet[0], fleet.Leaf(m.HostSet[0])
	p.proof = protocol.Proof{Leaf: p.leaf, Index: 0, Path: []string{}}
}

func (p *plane) sign(head *fleet.Head) {
	var err error
	if p.head, err = pki.Marshal(head); err != nil {
		p.t.Fatal(err)
	}
	if p.headSig, err = p.ci.Sign(p.head); err != nil {
		p.t.Fatal(err)
	}
}

func (p *plane) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	p.mu.Lock()
	slow := p.slow
	p.mu.Unlock()
	if strings.HasSuffix(r.URL.Path, "/report") {
		time.Sleep(slow)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	answer := func(v any) {
		doc, err := pki.Marshal(v)
		if err != nil {
			p.t.Error(err)
		}
		w.Write(doc)
	}
	switch route := p.routes[r.URL.Path]; {
	case route != nil:
		r.Body = io.NopCloser(bytes.NewReader(body))
		route(w, r)
	case p.away:
		w.WriteHeader(http.StatusBadGateway)
	case r.URL.Path == "/v1/agent/checkin":
		p.lastSeen = protocol.CheckinRequest{}
		if err := json.Unmarshal(body, &p.lastSeen); err != nil {
			p.t.Error(err)
		}
		out := &protocol.CheckinResponse{NextCheckinSecs: 5, Head: &protocol.HeadRef{Channel: "stable", Hash: pki.HashHex(p.head)}}
		if p.lastSeen.CurrentGeneration.ClosureHash != p.wanted.TargetClosure && !p.noTarget {
			startBy, wave := uint32(300), p.wanted.WaveIndex
			out.Target = &protocol.Target{
				ClosureHash: p.wanted.TargetClosure, ChannelRef: p.id, RolloutID: p.id, WaveIndex: &wave, EvaluatedAt: pki.At(time.Now()), SignedAt: pki.At(time.Now()),
				Activate: &protocol.Activate{ConfirmWindowSecs: 1, ConfirmEndpoint: "/elsewhere"}, FreshnessWindowSecs: 7200, StartBySecs: &startBy,
			}
		}
		if p.v1 != nil {
			p.v1.answer(p, out)
		}
		if p.tamper != nil {
			p.tamper(out)
		}
		answer(out)
	case p.v1 != nil && strings.HasPrefix(r.URL.Path, "/v1/rollouts/"):
		p.v1.serve(w, r)
	case r.URL.Path == "/v1/heads/stable":
		w.Write(p.head)
	case r.URL.Path == "/v1/heads/stable/sig":
		w.Write(p.headSig)
	case r.URL.Path == "/v1/heads/beta" && p.foreign[0] != nil:
		w.Write(p.foreign[0])
	case r.URL.Path == "/v1/heads/beta/sig":
		w.Write(p.foreign[1])
	case r.URL.Path == "/v1/heads/stable/proof/"+testHost:
		answer(p.proof)
	case r.URL.Path == protocol.ConfirmPath:
		p.confirms++
		w.WriteHeader(p.confirm)
	case r.URL.Path == "/v1/agent/report":
		var rep protocol.ReportRequest
		if err := json.Unmarshal(body, &rep); err != nil {
			p.t.Error(err)
		}
		p.reports = append(p.reports, rep)
		answer(protocol.ReportResponse{EventID: "e"})
	default:
		http.NotFound(w, r)
	}
}

func (p *plane) set(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
}

// seen is what the last check-in said.
func (p *plane) seen() protocol.CheckinRequest {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lastSeen
}

// confirmed counts the confirms.
func (p *plane) confirmed() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.confirms
}

// said is every report so far.
func (p *plane) said() []protocol.ReportRequest {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.reports)
}

// reported says whether the host reported an event.
func (p *plane) reported(event string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.reports {
		if r.Event == event {
			return true
		}
	}
	return false
}

// machine is one simulated host in a directory of its own.
type machine struct {
	t   *testing.T
	dir string
	sim *nixops.Sim
	p   *plane

	adjust func(*Config)
	broken string // what an ailing machine cannot do
}

func newMachine(t *testing.T, p *plane, closures map[string]nixops.SimClosure) *machine {
	t.Helper()
	dir := t.TempDir()
	for _, sub := range []string{"cache", "host"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range closures {
		c.Agent, c.TrustJSON, c.Size = "self", string(p.trust), 1
		if c.SwitchTime == 0 {
			c.SwitchTime = 2 * time.Second
		}
		if err := nixops.WriteSimClosure(filepath.Join(dir, "cache"), name, c); err != nil {
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
	for name, data := range map[string][]byte{"key": key, "cert/agent.pem": cert, "trust.json": p.trust, "ca.pem": p.rootPEM} {
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

// open boots the machine's hardware: its deadline runs whether an agent does or not.
func (m *machine) open() {
	m.t.Helper()
	sim, err := nixops.NewSim(m.path("machine"), filepath.Join(m.dir, "cache"))
	if err != nil {
		m.t.Fatal(err)
	}
	m.sim = sim
	u := m.undoer()
	sim.OnDeadline(func(d nixops.Deadline) {
		if err := u.insist(m.t.Context(), d.Unit); err != nil && m.t.Context().Err() == nil {
			m.t.Errorf("deadline: %v", err)
		}
	})
	m.t.Cleanup(sim.Close)
}

func (m *machine) undoer() *undoer {
	return &undoer{m.sim, directory(m.path("state")), zerolog.Nop(), nil}
}

func (m *machine) config(host nixops.Host) Config {
	c := Config{
		URL: "https://cp", MachineID: testHost, TrustFile: m.path("trust.json"), CACert: m.path("ca.pem"), ClientCert: m.path("cert/agent.pem"),
		ClientKey: m.path("key"), SSHHostKey: m.path("key"), StateDir: m.path("state"), AllowVolatile: true, PollInterval: 5 * time.Second,
		Host: host, Dial: m.p.net.dial, Log: zerolog.Nop(),
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
	end := m.start(host)
	m.sim.OnBoot(func(string) {
		mu.Lock()
		defer mu.Unlock()
		if end == nil {
			return
		}
		end()
		end = func() {}
		if err := m.undoer().guard(context.Background()); err != nil {
			m.t.Errorf("guard: %v", err)
		}
		if m.sim.AgentStarts() {
			end = m.start(host)
		}
	})
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
	if err := directory(m.path("state")).read(statusName, &s); err != nil {
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

var good = map[string]nixops.SimClosure{before: {}, target: {}, another: {}}

func with(bad nixops.SimClosure) map[string]nixops.SimClosure {
	return map[string]nixops.SimClosure{before: {}, target: bad, another: {}}
}

// TestMain keeps the machines in memory where it can: every step of a journal
// is flushed, and there are thousands of steps.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "agent" {
		// A deadline that nobody claimed runs this executable, which is no agent here.
		os.Exit(1)
	}
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
		os.Setenv("TMPDIR", "/dev/shm")
	}
	goleak.VerifyTestMain(m)
}

// bubble runs a test in virtual time.
func bubble(t *testing.T, run func(t *testing.T)) { synctest.Test(t, run) }

func pemOf(c *x509.Certificate) []byte {
	return []byte("-----BEGIN CERTIFICATE-----\n" + base64Lines(c.Raw) + "-----END CERTIFICATE-----\n")
}

func base64Lines(raw []byte) string {
	text := base64.StdEncoding.EncodeToString(raw)
	var b strings.Builder
	for len(text) > 64 {
		b.WriteString(text[:64] + "\n")
		text = text[64:]
	}
	b.WriteString(text + "\n")
	return b.String()
}
