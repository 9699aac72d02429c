package cp

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

const (
	handshakeTimeout = 10 * time.Second
	// maxAcceptPause bounds the pause after a connection could not be accepted, as
	// when there are no file descriptors left.
	maxAcceptPause = time.Second
)

// limitedListener bounds handshakes in flight and connections without a
// certificate. The handshake is made here, so that a client that stalls holds
// no more than its place among the handshakes.
type limitedListener struct {
	net.Listener
	config     *tls.Config
	log        zerolog.Logger
	handshakes chan struct{}
	anonymous  chan struct{}
	ready      chan net.Conn
	done       chan struct{}
	stop       func()
}

func newLimitedListener(inner net.Listener, config *tls.Config, handshakes, anonymous int, log zerolog.Logger) *limitedListener {
	l := &limitedListener{
		Listener: inner, config: config, log: log,
		handshakes: make(chan struct{}, handshakes), anonymous: make(chan struct{}, anonymous),
		ready: make(chan net.Conn), done: make(chan struct{}),
	}
	l.stop = sync.OnceFunc(func() { close(l.done) })
	go l.accept()
	return l
}

func (l *limitedListener) accept() {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel() // ends the handshakes that are under way
	defer l.stop()
	for pause := time.Duration(0); ; {
		select {
		case l.handshakes <- struct{}{}:
		case <-l.done:
			return
		}
		conn, err := l.Listener.Accept()
		switch {
		case err == nil:
			pause = 0
			go func() {
				l.greet(ctx, conn)
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

func (l *limitedListener) greet(ctx context.Context, raw net.Conn) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	conn := tls.Server(raw, l.config)
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return
	}
	var out net.Conn = conn
	if len(conn.ConnectionState().PeerCertificates) == 0 {
		select {
		case l.anonymous <- struct{}{}:
			out = &anonymousConn{Conn: conn, release: sync.OnceFunc(func() { <-l.anonymous })}
		default:
			conn.Close()
			return
		}
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

// anonymousConn gives its place back when it closes. It hides that it is a TLS
// connection from net/http, which needs that only for the peer's certificate.
type anonymousConn struct {
	net.Conn
	release func()
}

// Close closes the connection and frees its place.
func (c *anonymousConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}
