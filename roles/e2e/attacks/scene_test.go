//go:debug tlsmlkem=0

package attacks

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"nixfleet/pki"
	"nixfleet/roles/cp"
)

// attack is one thing that somebody tries.
type attack struct {
	name  string
	stops string // for the table
	lack  lack   // the check that stops it, for TestMutants
	run   func(*scene)
}

// lack leaves out one check: in a file, the text `is` becomes `was`, in which LACKS stands for "this check is left
// out". Where a second check stands behind it, both are left out.
type lack struct {
	file, is, was string
	behind        []lack
}

func without(file, is, was string, behind ...lack) lack { return lack{file, is, was, behind} }

const succeeded = "THE ATTACK SUCCEEDED"

// play plays one attack in a bubble of its own.
func play(t *testing.T, a attack) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) { newScene(t, dir, a.run) })
}

// newScene runs what happens in a scene of its own.
func newScene(t *testing.T, dir string, run func(*scene)) {
	s := &scene{t: t, dir: dir, log: &record{}, machines: map[string]*machine{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.house = newHouse(s)
	s.plane = newPlane(s)
	s.plane.start()
	defer s.end()
	run(s)
}

// scene is a fleet of two hosts, a and b, and the attacker's reach.
type scene struct {
	t        *testing.T
	dir      string
	ctx      context.Context
	cancel   context.CancelFunc
	log      *record
	house    *house
	plane    *plane
	machines map[string]*machine
}

func (s *scene) end() {
	s.cancel()
	for _, m := range s.machines {
		m.halt()
	}
	for _, m := range s.machines {
		m.edge.close()
	}
	s.plane.stop()
	s.plane.wire.Close()
	for _, m := range s.machines {
		m.sim.Close()
	}
	if s.t.Failed() {
		s.t.Logf("log:\n%s", s.log.text())
	}
}

func (s *scene) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *scene) path(parts ...string) string {
	return filepath.Join(append([]string{s.dir}, parts...)...)
}

func (s *scene) write(name string, data []byte) {
	s.t.Helper()
	s.must(os.MkdirAll(filepath.Dir(s.path(name)), 0o700))
	s.must(os.WriteFile(s.path(name), data, 0o600))
}

// success is the end of an attack that was not refused.
func (s *scene) success(format string, args ...any) {
	s.t.Helper()
	s.t.Errorf(succeeded+": "+format, args...)
}

// eventually fails the attack unless something is so before a time is over; it looks twice a minute of virtual time.
func (s *scene) eventually(what string, within time.Duration, is func() bool) {
	s.t.Helper()
	for end := time.Now().Add(within); time.Now().Before(end); time.Sleep(30 * time.Second) {
		if is() {
			return
		}
	}
	s.t.Fatalf("after %s: not yet so: %s", within, what)
}

// record keeps what all roles log.
type record struct {
	mu    sync.Mutex
	lines bytes.Buffer
}

// Write takes one line.
func (r *record) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lines.Write(p)
}

func (r *record) text() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lines.String()
}

// saidBy reports whether a role has logged a text after a mark.
func (r *record) saidBy(mark int, role, text string) bool {
	for line := range strings.Lines(r.since(mark)) {
		if strings.Contains(line, `"role":"`+role+`"`) && strings.Contains(line, text) {
			return true
		}
	}
	return false
}

// since is what was logged after a mark of len(text()).
func (r *record) since(mark int) string { return r.text()[mark:] }

// wire is a network in memory.
type wire struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newWire() *wire { return &wire{conns: make(chan net.Conn), done: make(chan struct{})} }

func (n *wire) Accept() (net.Conn, error) {
	select {
	case c := <-n.conns:
		return c, nil
	case <-n.done:
		return nil, net.ErrClosed
	}
}
func (n *wire) Close() error   { n.once.Do(func() { close(n.done) }); return nil }
func (n *wire) Addr() net.Addr { return &net.UnixAddr{Name: "wire"} }

func (n *wire) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case n.conns <- far:
		return near, nil
	case <-n.done:
		return nil, errors.New("no route to host")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// plane is the honest control plane.
type plane struct {
	s    *scene
	wire *wire
	stop func()

	webhook string  // file of its token
	jo      *caller // an operator
}

func newPlane(s *scene) *plane {
	p := &plane{s: s, stop: func() {}}
	p.jo = s.caller(s.house.operator("jo", time.Now(), time.Hour*24*30))
	return p
}

func (p *plane) config() cp.Config {
	s := p.s
	return cp.Config{
		Listener: p.wire, TLSCert: s.path("server.pem"), TLSKey: s.path("server.key"), ClientCA: s.path("client-ca.pem"),
		TrustFile: s.path("trust.json"), StateDir: s.path("cp"), DBPath: s.path("cp", "state.db"),
		Source: s.path("releases"), FleetCACert: s.path("ca.pem"), FleetCAKey: s.path("ca.key"), AgentSuffix: suffix,
		WebhookTokenFile: p.webhook,
		AgentValidity:    4 * time.Hour, Log: zerolog.New(s.log).With().Str("role", "cp").Logger(),
		Jitter: func(d time.Duration) time.Duration { return d / 2 },
	}
}

func (p *plane) start() {
	p.wire = newWire()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	cfg := p.config()
	go func() { done <- cp.Run(ctx, cfg) }()
	p.stop = sync.OnceFunc(func() {
		cancel()
		p.wire.Close()
		p.jo.http.CloseIdleConnections()
		if err := <-done; err != nil && !errors.Is(err, net.ErrClosed) {
			p.s.t.Errorf("control plane: %v", err)
		}
	})
	synctest.Wait()
}

// wipe takes all that a stopped control plane has kept.
func (s *scene) wipe() { s.must(os.RemoveAll(s.path("cp"))) }

// signedAt is when the release in force was signed.
func (p *plane) signedAt() string {
	got := p.jo.ask("GET", "/v1/channels/stable", nil, nil)
	return member(got.body, "signed_at")
}

// member is the text of a member of a JSON document, for looks of one line.
func member(doc []byte, name string) string {
	m := regexp.MustCompile(`"` + name + `":\s*("[^"]*"|[^,}\]]*)`).FindSubmatch(doc)
	if m == nil {
		return ""
	}
	return strings.Trim(string(m[1]), `"`)
}

// metric is the value of a metric of the control plane, or 0.
func (p *plane) metric(series string) float64 {
	for line := range strings.Lines(string(p.jo.ask("GET", "/metrics", nil, nil).body)) {
		if rest, ok := strings.CutPrefix(line, series+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(rest), 64)
			p.s.must(err)
			return v
		}
	}
	return 0
}

// caller is somebody who speaks to the control plane.
type caller struct {
	s    *scene
	http *http.Client
}

type answer struct {
	status int
	body   []byte
	err    error
}

// caller speaks with these certificates; none is nobody's.
func (s *scene) caller(pair ...tls.Certificate) *caller {
	roots := x509.NewCertPool()
	roots.AddCert(s.house.root.Cert)
	config := &tls.Config{RootCAs: roots, ServerName: "cp"}
	if len(pair) > 0 {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair[0], nil }
	}
	return &caller{s, &http.Client{Timeout: time.Minute, Transport: &http.Transport{
		DialContext:     func(ctx context.Context, n, a string) (net.Conn, error) { return s.plane.wire.dial(ctx, n, a) },
		TLSClientConfig: config, DisableCompression: true, DisableKeepAlives: true,
	}}}
}

// ask sends one request; body is JSON text, or a value to encode.
func (c *caller) ask(method, path string, body any, header map[string]string) answer {
	c.s.t.Helper()
	var text []byte
	switch b := body.(type) {
	case nil:
	case string:
		text = []byte(b)
	case []byte:
		text = b
	default:
		var err error
		text, err = pki.Marshal(b)
		c.s.must(err)
	}
	r, err := http.NewRequestWithContext(c.s.ctx, method, "https://cp"+path, bytes.NewReader(text))
	c.s.must(err)
	r.Header.Set("X-Nixfleet-Protocol", "1")
	r.Header.Set("Accept", "application/json")
	if text != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	for name, value := range header {
		r.Header.Set(name, value)
	}
	got, err := c.http.Do(r)
	if err != nil {
		return answer{err: err}
	}
	defer got.Body.Close()
	data, err := io.ReadAll(io.LimitReader(got.Body, 1<<24))
	return answer{got.StatusCode, data, err}
}

// refused wants an answer to be this refusal, with a text that names it, counted by status.
func (s *scene) refused(got answer, status int, text string) {
	s.t.Helper()
	switch {
	case got.err != nil:
		s.t.Errorf("no answer: %v", got.err)
	case got.status < 400:
		s.success("answered %d: %.200s", got.status, got.body)
	case got.status != status:
		s.success("refused for another reason: %d: %.300s", got.status, got.body)
	case text != "" && !strings.Contains(string(got.body), text) && !strings.Contains(s.log.text(), text):
		s.success("refused, but not with %q: %.300s", text, got.body)
	case s.plane.metric(fmt.Sprintf(`nixfleet_requests_denied_total{status="%d"}`, status)) == 0 &&
		s.plane.metric(`nixfleet_certificates_total{outcome="refused"}`) == 0:
		s.t.Errorf("status %d is not counted", status)
	}
}

// releaseRefused wants the control plane to refuse what the forge has now, with a text that names why, to count it, and
// to go on with what it had.
func (s *scene) releaseRefused(text string) {
	s.t.Helper()
	before, mark, failed := s.plane.signedAt(), len(s.log.text()), s.plane.metric(pollsFailed)
	time.Sleep(5 * time.Minute)
	said := s.log.since(mark)
	switch {
	case s.plane.signedAt() != before:
		s.success("the release was accepted")
	case !strings.Contains(said, "release not accepted"):
		s.success("nothing was refused")
	case !strings.Contains(said, text):
		s.success("refused, but not with %q:\n%s", text, said)
	case s.plane.metric(pollsFailed) <= failed:
		s.t.Error("the refusal is not counted")
	}
}

const pollsFailed = `nixfleet_source_polls_total{outcome="failed"}`

// recovers wants the honest system back without a person: the next honest release comes into force, and every machine
// runs it.
func (s *scene) recovers() {
	s.t.Helper()
	if s.t.Failed() {
		return
	}
	s.house.publish()
	want := s.house.signed.UTC().Format("2006-01-02T15:04:05")
	s.eventually("the honest release is in force", 30*time.Minute,
		func() bool { return strings.HasPrefix(s.plane.signedAt(), want) })
	for name, m := range s.machines {
		s.eventually(name+" runs the honest release", 2*time.Hour,
			func() bool { return m.running() == s.house.closure(name) })
	}
}
