package cp

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
)

const (
	handshakeTimeout = 10 * time.Second
	// crowdedTimeout is what a handshake gets when all places are taken: long enough
	// for a slow line, short enough that a stalling client frees its place.
	crowdedTimeout = 2 * time.Second
	// silentTimeout is what one gets then that has not said hello.
	silentTimeout = 500 * time.Millisecond
	// maxAcceptPause bounds the pause after a connection could not be accepted, as
	// when there are no file descriptors left.
	maxAcceptPause = time.Second
)

// limitedListener bounds handshakes in flight, connections without a certificate, and
// those of one certificate's key. The handshake is made here, so that a client that
// stalls holds no more than its place among the handshakes.
type limitedListener struct {
	net.Listener
	config     *tls.Config
	log        zerolog.Logger
	handshakes chan struct{}
	anonymous  *crowd
	known      *crowd
	ready      chan net.Conn
	done       chan struct{}
	stop       func()
	failed     func() // counts a handshake that failed

	mu       sync.Mutex
	greeting map[*greeting]struct{} // the handshakes in flight
}

type greeting struct {
	raw   *placedConn
	began time.Time
}

func newLimitedListener(
	inner net.Listener, config *tls.Config, handshakes, anonymous int, log zerolog.Logger, failed func(),
) *limitedListener {
	l := &limitedListener{
		Listener: inner, config: hearing(config), log: log, failed: failed,
		handshakes: make(chan struct{}, handshakes), anonymous: newCrowd(anonymous), known: newCrowd(maxPerKey),
		ready: make(chan net.Conn), done: make(chan struct{}), greeting: map[*greeting]struct{}{},
	}
	l.stop = sync.OnceFunc(func() { close(l.done) })
	go l.accept()
	return l
}

// hearing is a configuration that notes when a peer has said hello.
func hearing(config *tls.Config) *tls.Config {
	config = config.Clone()
	inner := config.GetConfigForClient
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		hello.Conn.(*placedConn).heard.Store(true)
		if inner == nil {
			return nil, nil
		}
		return inner(hello)
	}
	return config
}

func (l *limitedListener) accept() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel() // ends the handshakes that are under way
	defer l.stop()
	for pause := time.Duration(0); ; {
		if !l.place() {
			return
		}
		conn, err := l.Listener.Accept()
		switch {
		case err == nil:
			pause = 0
			g := l.begin(conn)
			go func() {
				l.greet(ctx, g)
				<-l.handshakes
			}()
			continue
		case errors.Is(err, net.ErrClosed):
			return
		}
		<-l.handshakes
		pause = min(max(5*time.Millisecond, 2*pause), maxAcceptPause)
		l.log.Error().Err(err).Msg("connection not accepted")
		select {
		case <-time.After(pause):
		case <-l.done:
			return
		}
	}
}

// place waits for a place among the handshakes; false means that the listener
// ends. When there is none, those that have theirs are given less time.
func (l *limitedListener) place() bool {
	select {
	case l.handshakes <- struct{}{}:
		return true
	default:
		l.hurry()
	}
	select {
	case l.handshakes <- struct{}{}:
		return true
	case <-l.done:
		return false
	}
}

func (l *limitedListener) hurry() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for g := range l.greeting {
		patience := crowdedTimeout
		if !g.raw.heard.Load() {
			patience = silentTimeout
		}
		// A connection that takes no deadline is closed already.
		_ = g.raw.SetDeadline(g.began.Add(patience))
	}
}

func (l *limitedListener) begin(raw net.Conn) *greeting {
	l.mu.Lock()
	defer l.mu.Unlock()
	g := &greeting{&placedConn{Conn: raw}, time.Now()}
	l.greeting[g] = struct{}{}
	return g
}

// end takes back what hurry may have set.
func (l *limitedListener) end(g *greeting) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.greeting, g)
	return g.raw.SetDeadline(time.Time{})
}

func (l *limitedListener) greet(ctx context.Context, g *greeting) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	conn := tls.Server(g.raw, l.config)
	err := conn.HandshakeContext(ctx)
	if err = errors.Join(err, l.end(g)); err != nil {
		g.raw.Close()
		l.failed()
		return
	}
	var out net.Conn = conn
	entered := false
	if peer := conn.ConnectionState().PeerCertificates; len(peer) == 0 {
		// It hides that it is a TLS connection from net/http, which needs that only
		// for the peer's certificate.
		hidden := &placedConn{Conn: conn}
		out, entered = hidden, l.anonymous.enter("", hidden)
	} else {
		entered = l.known.enter(string(peer[0].RawSubjectPublicKeyInfo), g.raw)
	}
	if !entered {
		conn.Close()
		return
	}
	select {
	case l.ready <- out:
	case <-l.done:
		out.Close()
	}
}

// Accept gives connections whose handshake is done.
func (l *limitedListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.ready:
		return conn, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close stops listening.
func (l *limitedListener) Close() error {
	l.stop()
	return l.Listener.Close()
}

// placedConn gives its place back when it closes.
type placedConn struct {
	net.Conn
	release func()      // may be called twice; nil while there is no place
	heard   atomic.Bool // the peer has said hello
}

// Close closes the connection and frees its place.
func (c *placedConn) Close() error {
	if c.release != nil {
		defer c.release()
	}
	return c.Conn.Close()
}
