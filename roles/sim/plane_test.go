package sim

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"nixfleet/pki"
	"nixfleet/roles/cp"
	"nixfleet/roles/protocol"
	"nixfleet/roles/protocol/client"
)

var errNoRoute = errors.New("no route to host")

// wire is a network in memory: connections come out where they are accepted.
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

// dial connects; the far end is what wrap makes of it.
func (n *wire) dial(ctx context.Context, wrap func(net.Conn) net.Conn) (net.Conn, error) {
	near, far := net.Pipe()
	if wrap != nil {
		far = wrap(far)
	}
	select {
	case n.conns <- far:
		return near, nil
	case <-n.done:
		return nil, errNoRoute
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// plane is the control plane, which can be killed and lose its database.
type plane struct {
	w        *world
	state    string
	operator *client.Client

	mu    sync.Mutex
	wire  *wire // nil while it is down
	conns map[net.Conn]bool
	stop  func()
}

func newPlane(w *world) *plane {
	p := &plane{w: w, state: w.path("cp"), conns: map[net.Conn]bool{}}
	w.must(os.MkdirAll(p.state, 0o700))
	key, err := pki.GenerateKey(pki.AlgorithmP256)
	w.must(err)
	f := w.forge
	cert, err := f.root.IssueServer([]string{"cp"}, key.Crypto().Public(), time.Now(), century)
	w.must(err)
	for file, data := range map[string][]byte{
		"server.pem": cert, "server.key": f.keyPEM(key), "client-ca.pem": append(certPEM(f.ca.Cert), certPEM(f.root.Cert)...),
		"ca.pem": certPEM(f.ca.Cert), "ca.key": f.keyPEM(f.caKey), "trust.json": f.trust(), "root.pem": certPEM(f.root.Cert),
	} {
		w.must(os.WriteFile(w.path(file), data, 0o600))
	}
	operator, err := pki.GenerateKey(pki.AlgorithmP256)
	w.must(err)
	cert, err = f.root.IssueOperator("operator-sim", operator.Crypto().Public(), time.Now(), century)
	w.must(err)
	pair, err := tls.X509KeyPair(cert, f.keyPEM(operator))
	w.must(err)
	p.operator, err = client.New(client.Config{
		BaseURL: "https://cp", CAPEM: certPEM(f.root.Cert), Dial: p.dial,
		Certificate: func() (*tls.Certificate, error) { return &pair, nil },
	})
	w.must(err)
	return p
}

func (p *plane) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	p.mu.Lock()
	to := p.wire
	p.mu.Unlock()
	if to == nil {
		return nil, errNoRoute
	}
	conn, err := to.dial(ctx, nil)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns[conn] = true
	return conn, nil
}

// start runs the control plane on what its directory holds.
func (p *plane) start() {
	p.mu.Lock()
	defer p.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	p.wire = newWire()
	cfg := cp.Config{
		Listener: p.wire, TLSCert: p.w.path("server.pem"), TLSKey: p.w.path("server.key"),
		ClientCA:  p.w.path("client-ca.pem"),
		TrustFile: p.w.path("trust.json"), StateDir: p.state, DBPath: filepath.Join(p.state, "state.db"),
		Source:      p.w.forge.dir,
		FleetCACert: p.w.path("ca.pem"), FleetCAKey: p.w.path("ca.key"), AgentSuffix: suffix, AgentValidity: 20 * time.Hour,
		Log: *p.w.log("cp"), Jitter: p.w.jitter("control plane"),
		Woken: func(host string) { p.w.rest("woken", host, time.Since(p.w.began)) },
	}
	done := make(chan error, 1)
	go func() { done <- cp.Run(ctx, cfg) }()
	p.stop = func() {
		cancel()
		// Its listener is closed under it.
		if err := <-done; err != nil && !errors.Is(err, net.ErrClosed) {
			p.w.violate("run", "control plane: %v", err)
		}
	}
}

// kill ends the control plane at a moment at which nothing moves, as a cut of
// the power would: what it does while it ends is taken back.
func (p *plane) kill(wiped bool) {
	p.mu.Lock()
	wasUp := p.wire != nil
	p.mu.Unlock()
	if wasUp {
		synctest.Wait()
		image := p.w.path("cp.image")
		p.w.must(os.RemoveAll(image))
		p.w.must(os.CopyFS(image, os.DirFS(p.state)))
		p.down()
		p.w.must(os.RemoveAll(p.state))
		p.w.must(os.Rename(image, p.state))
	}
	if wiped {
		entries, err := os.ReadDir(p.state)
		p.w.must(err)
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), "state.db") {
				p.w.must(os.Remove(filepath.Join(p.state, e.Name())))
			}
		}
		p.w.locked(func() { p.w.wiped() })
	}
}

// down stops it, its connections first.
func (p *plane) down() {
	p.mu.Lock()
	if p.wire != nil {
		p.wire.Close()
		p.wire = nil
	}
	for c := range p.conns {
		c.Close()
	}
	clear(p.conns)
	stop := p.stop
	p.stop = nil
	p.mu.Unlock()
	p.operator.CloseIdle()
	if stop != nil {
		stop()
	}
}

func (p *plane) up() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.wire != nil
}

// follow hands the event log on, over restarts.
func (p *plane) follow(ctx context.Context) {
	for ctx.Err() == nil {
		after := p.w.lastSeq()
		_ = p.operator.Events(ctx, client.EventQuery{After: after}, func(e protocol.Event) error {
			p.w.happened(e)
			return nil
		})
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// log writes what a part says to a file, when one seed is run by itself.
func (w *world) log(part string) *zerolog.Logger {
	if w.trace == nil {
		nothing := zerolog.Nop()
		return &nothing
	}
	log := zerolog.New(zerolog.SyncWriter(w.trace)).With().Str("part", part).Timestamp().Logger()
	return &log
}

func (w *world) path(parts ...string) string {
	return filepath.Join(append([]string{w.dir}, parts...)...)
}

func (w *world) must(err error) {
	if err != nil {
		panic(fmt.Sprintf("seed %d: %v", w.scenario.seed, err))
	}
}
