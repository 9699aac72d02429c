package cp

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
)

// pipes is a listener whose connections are in memory.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { close(p.done); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

func (p *pipes) dial() net.Conn {
	ours, theirs := net.Pipe()
	p.conns <- theirs
	return ours
}

// handshake is the configurations of both sides of a handshake with the control plane.
func (e *estate) handshake(t *testing.T) (server, client *tls.Config) {
	t.Helper()
	cert, err := loadServerCertificate(e.path("server.pem"), e.path("server.key"))()
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(e.root.Cert)
	return &tls.Config{Certificates: []tls.Certificate{*cert}}, &tls.Config{RootCAs: roots, ServerName: "localhost"}
}

// greets shakes hands with a listener, and gives both ends and what came of it.
func greets(t *testing.T, l net.Listener, inner *pipes, config *tls.Config) (*tls.Conn, net.Conn, error) {
	t.Helper()
	client := tls.Client(inner.dial(), config)
	greeted := make(chan error, 1)
	go func() { greeted <- client.HandshakeContext(context.Background()) }()
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return client, accepted, <-greeted
}

func TestHandshakesThatStallMakeRoom(t *testing.T) {
	e := serialEstate(t, "a")
	server, client := e.handshake(t)
	at(t, func(t *testing.T) {
		const places = 3
		inner := &pipes{make(chan net.Conn, 16), make(chan struct{})}
		l := newLimitedListener(inner, server, places, 1, zerolog.Nop(),
			func() {})
		defer l.Close()
		began := time.Now()
		var stalled []net.Conn
		for range places {
			stalled = append(stalled, inner.dial())
		}
		synctest.Wait()
		client, accepted, err := greets(t, l, inner, client)
		if err != nil || time.Since(began) > crowdedTimeout {
			t.Errorf("greeted after %s: %v", time.Since(began), err)
		}
		// The deadline was the handshake's alone.
		time.Sleep(time.Minute)
		go func() { _, _ = client.Write([]byte("x")) }()
		if _, err := accepted.Read(make([]byte, 1)); err != nil {
			t.Errorf("a minute later: %v", err)
		}
		for _, conn := range append(stalled, client, accepted) {
			conn.Close()
		}
	})
}
