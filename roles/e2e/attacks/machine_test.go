package attacks

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	stdlog "log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"nixfleet/nixops"
	"nixfleet/nixops/sim"
	"nixfleet/pki"
	"nixfleet/roles/agent"
)

// machine is a simulated machine with a real agent. What it takes for the control plane is edge, which passes all on to
// the honest one until an attacker takes it over.
type machine struct {
	s    *scene
	name string
	sim  *sim.Host
	edge *edge

	life sync.Mutex
	stop func()
}

// machine installs a machine that has enrolled and runs the release in force.
func (s *scene) machine(name string) *machine {
	s.t.Helper()
	m := &machine{s: s, name: name, stop: func() {}}
	key, err := s.house.hostKeys[name].MarshalOpenSSH("")
	s.must(err)
	token := s.house.token(s.house.org, name, s.house.hostKeys[name], time.Now().Truncate(time.Second))
	text, err := pki.Marshal(token)
	s.must(err)
	trust, err := s.house.trust.Marshal()
	s.must(err)
	for file, data := range map[string][]byte{"key": key, "trust.json": trust, "ca.pem": certPEM(s.house.root.Cert),
		"token": text} {
		s.write(filepath.Join(name, file), data)
	}
	first := closureOf(name, 0)
	s.must(sim.WriteClosure(s.path("cache"), first, sim.Closure{Agent: "self", TrustJSON: string(trust)}))
	m.sim, err = sim.New(s.path(name, "machine"), s.path("cache"))
	s.must(err)
	m.sim.Alone()
	m.sim.OnDeadline(func(d nixops.Deadline) {
		if err := agent.Deadline(s.ctx, m.config(), d.Unit); err != nil {
			s.log.Write([]byte("deadline: " + err.Error() + "\n"))
		}
	})
	m.sim.OnSwitched(func(string) { m.restart() })
	s.must(m.sim.Install(first))
	m.edge = newEdge(s, m)
	s.machines[name] = m
	s.house.list(token)
	m.start()
	s.eventually(name+" runs the first release", 2*time.Hour, func() bool { return m.running() == s.house.closure(name) })
	time.Sleep(10 * time.Minute)
	return m
}

func (m *machine) config() agent.Config {
	s := m.s
	return agent.Config{
		URL: "https://cp", MachineID: m.name, TrustFile: s.path(m.name, "trust.json"), CACert: s.path(m.name, "ca.pem"),
		ClientCert: s.path(m.name, "cert", "agent.pem"), ClientKey: s.path(m.name, "key"), SSHHostKey: s.path(m.name, "key"),
		TokenFile: s.path(m.name, "token"), StateDir: s.path(m.name, "state"), AllowVolatile: true, ActsPoll: time.Hour,
		RebootPolicy: "never", Host: m.sim, Dial: m.edge.wire.dial, MetricsFile: s.path(m.name, "metrics"),
		Log:    zerolog.New(s.log).With().Str("role", m.name).Logger(),
		Jitter: func(d time.Duration) time.Duration { return d / 2 },
	}
}

func (m *machine) start() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	cfg := m.config()
	go func() { done <- agent.Run(ctx, cfg) }()
	m.stop = func() {
		cancel()
		<-done
	}
}

func (m *machine) halt() {
	m.life.Lock()
	defer m.life.Unlock()
	m.stop()
	m.stop = func() {}
}

// restart is what a switch does to the agent's unit.
func (m *machine) restart() {
	m.life.Lock()
	defer m.life.Unlock()
	m.stop()
	m.stop = func() {}
	if m.s.ctx.Err() == nil {
		m.start()
	}
}

// running is the closure that the machine runs.
func (m *machine) running() string {
	path, err := m.sim.CurrentSystem(m.s.ctx)
	if err != nil {
		return err.Error()
	}
	return filepath.Base(path)
}

// metric is the value of one of the agent's metrics.
func (m *machine) metric(name string) float64 {
	data, err := os.ReadFile(m.s.path(m.name, "metrics"))
	m.s.must(err)
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "nixfleet_agent_"+name+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(rest), 64)
			m.s.must(err)
			return v
		}
	}
	return 0
}

// said is one answer of a control plane, which an attacker may change.
type said struct {
	request []byte
	status  int
	header  http.Header
	body    []byte
}

// edge is what a machine takes for the control plane. It has the server's key.
type edge struct {
	s      *scene
	wire   *wire
	server *http.Server

	mu   sync.Mutex
	lie  func(path string, a *said) // nil: the honest control plane speaks
	pair *tls.Certificate
}

func newEdge(s *scene, m *machine) *edge {
	e := &edge{s: s, wire: newWire()}
	pair, err := tls.LoadX509KeyPair(s.path("server.pem"), s.path("server.key"))
	s.must(err)
	e.server = &http.Server{ErrorLog: stdlog.New(io.Discard, "", 0), Handler: http.HandlerFunc(
		func(w http.ResponseWriter, r *http.Request) { e.answer(m, w, r) })}
	e.pair = &pair
	go e.server.Serve(tls.NewListener(e.wire, &tls.Config{ClientAuth: tls.RequestClientCert,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			e.mu.Lock()
			defer e.mu.Unlock()
			return e.pair, nil
		}}))
	return e
}

// reload takes the server's present certificate, and ends the connections of before.
func (e *edge) reload(s *scene) {
	pair, err := tls.LoadX509KeyPair(s.path("server.pem"), s.path("server.key"))
	s.must(err)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.pair = &pair
}

func (e *edge) close() {
	e.server.Close()
	e.wire.Close()
}

// lies has the attacker speak, or with nil the honest control plane.
func (e *edge) lies(lie func(path string, a *said)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lie = lie
}

func (e *edge) answer(m *machine, w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	c := e.s.caller()
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		c = e.s.caller(tls.Certificate{Certificate: [][]byte{r.TLS.PeerCertificates[0].Raw},
			PrivateKey: e.s.house.hostKeys[m.name].Crypto()})
	}
	c.http.Timeout = 0
	ask, err := http.NewRequestWithContext(r.Context(), r.Method, "https://cp"+r.RequestURI, bytes.NewReader(body))
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	ask.Header = r.Header.Clone()
	ask.Header.Del("Prefer") // plain polls, which the attacker sees all of
	got, err := c.http.Do(ask)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	defer got.Body.Close()
	text, err := io.ReadAll(got.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	a := &said{request: body, status: got.StatusCode, header: got.Header, body: text}
	e.mu.Lock()
	lie := e.lie
	e.mu.Unlock()
	if lie != nil {
		lie(r.URL.Path, a)
	}
	for name, values := range a.header {
		if name != "Content-Length" {
			w.Header()[name] = values
		}
	}
	w.WriteHeader(a.status)
	w.Write(a.body)
}

var _ net.Listener = (*wire)(nil)
