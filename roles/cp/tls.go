package cp

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"nixfleet/pki"
)

const handshakeTimeout = 10 * time.Second

// clientCAs is the bundle that client certificates must chain to.
type clientCAs struct{ pool *x509.CertPool }

func loadClientCAs(path string) func() (clientCAs, error) {
	return func() (clientCAs, error) {
		if path == "" {
			return clientCAs{}, nil
		}
		bundle, err := os.ReadFile(path)
		if err != nil {
			return clientCAs{}, fmt.Errorf("client CA: %w", err)
		}
		certs, err := pki.ParseCertificates(bundle)
		if err != nil {
			return clientCAs{}, fmt.Errorf("client CA %s: %w", path, err)
		}
		pool := x509.NewCertPool()
		for _, c := range certs {
			pool.AddCert(c)
		}
		return clientCAs{pool}, nil
	}
}

func loadServerCertificate(cert, key string) func() (*tls.Certificate, error) {
	return func() (*tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("server certificate: %w", err)
		}
		return &pair, nil
	}
}

// tlsConfig takes certificate and client CAs anew at each handshake. What a
// resumed session once showed is not trusted by itself: every request verifies
// its certificate against the CAs of that moment, see identify.
func (s *server) tlsConfig() *tls.Config {
	base := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: nil}
	base.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		cert, _, err := s.serverCert.get()
		if cert == nil {
			return nil, err
		}
		cas, _, err := s.clientCAs.get()
		if err != nil {
			s.log.Error().Err(err).Msg("client CA not reloaded")
		}
		config := &tls.Config{
			MinVersion:   tls.VersionTLS12,
			Certificates: []tls.Certificate{*cert},
			ClientCAs:    cas.pool,
			ClientAuth:   tls.VerifyClientCertIfGiven,
		}
		if cas.pool == nil {
			config.ClientAuth = tls.NoClientCert
		}
		config.SetSessionTicketKeys([][32]byte{s.ticketKey})
		return config, nil
	}
	return base
}

// limitedListener bounds handshakes in flight and connections without a
// certificate. The handshake is made here, so that a client that stalls holds
// no more than its place among the handshakes.
type limitedListener struct {
	net.Listener
	config     *tls.Config
	handshakes chan struct{}
	anonymous  chan struct{}
	ready      chan net.Conn
	done       chan struct{}
	once       sync.Once
	failed     error
}

func newLimitedListener(inner net.Listener, config *tls.Config, handshakes, anonymous int) *limitedListener {
	l := &limitedListener{
		Listener: inner, config: config, handshakes: make(chan struct{}, handshakes), anonymous: make(chan struct{}, anonymous),
		ready: make(chan net.Conn), done: make(chan struct{}),
	}
	go l.accept()
	return l
}

func (l *limitedListener) accept() {
	for {
		l.handshakes <- struct{}{}
		conn, err := l.Listener.Accept()
		if err != nil {
			l.stop(err)
			return
		}
		go func() {
			l.greet(conn)
			<-l.handshakes
		}()
	}
}

func (l *limitedListener) greet(raw net.Conn) {
	conn := tls.Server(raw, l.config)
	conn.SetDeadline(time.Now().Add(handshakeTimeout))
	if err := conn.Handshake(); err != nil {
		raw.Close()
		return
	}
	conn.SetDeadline(time.Time{})
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
		return nil, l.failed
	}
}

// Close stops listening.
func (l *limitedListener) Close() error {
	err := l.Listener.Close()
	l.stop(net.ErrClosed)
	return err
}

func (l *limitedListener) stop(err error) {
	l.once.Do(func() {
		l.failed = err
		close(l.done)
	})
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
