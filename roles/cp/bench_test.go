package cp

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/rs/zerolog"

	"nixfleet/roles/protocol"
)

// line is one connection of an agent, with as little of a client as it takes.
type line struct {
	conn *tls.Conn
	r    *bufio.Reader
}

func (p *plane) dial(t testing.TB, cert *tls.Certificate, sessions tls.ClientSessionCache) *line {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(p.root.Cert)
	conn, err := tls.Dial("tcp", strings.TrimPrefix(p.url, "https://"), &tls.Config{
		RootCAs: roots, Certificates: []tls.Certificate{*cert}, ClientSessionCache: sessions,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	return &line{conn, bufio.NewReader(conn)}
}

// request is a check-in as it goes over the wire.
func request(t testing.TB, req *protocol.CheckinRequest, wait time.Duration) []byte {
	t.Helper()
	body, err := json.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	fmt.Fprintf(&text, "POST %s HTTP/1.1\r\nHost: cp\r\n%s: 1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n",
		checkinPath, protocol.HeaderProtocol, len(body))
	if wait > 0 {
		fmt.Fprintf(&text, "Prefer: wait=%d\r\n", wait/time.Second)
	}
	text.WriteString("\r\n")
	text.Write(body)
	return text.Bytes()
}

func (l *line) exchange(request []byte) error {
	if _, err := l.conn.Write(request); err != nil {
		return err
	}
	resp, err := http.ReadResponse(l.r, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("answered %s", resp.Status)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

func hostNames(n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("host-%05d", i)
	}
	return names
}

// BenchmarkIdleCheckins are check-ins of converged hosts over kept-alive mTLS,
// server and clients on the same cores. Nothing of it may be written to disk.
func BenchmarkIdleCheckins(b *testing.B) {
	hosts := hostNames(16)
	e := newEstate(b, hosts...)
	p := e.serve(func(c *Config) { c.MaxRate, c.Log = maxRate, c.Log.Level(zerolog.Disabled) })
	next := make(chan string, len(hosts))
	for _, h := range hosts {
		next <- h
	}
	lines := map[string]*line{}
	for _, h := range hosts {
		lines[h] = p.dial(b, e.agentCert(h, time.Now().Add(-time.Hour)), nil)
		for range 4 {
			if err := lines[h].exchange(request(b, e.state(h, closureOf(h, 1)), 0)); err != nil {
				b.Fatal(err)
			}
		}
		defer lines[h].conn.Close()
	}
	b.SetParallelism(8)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		host := <-next
		defer func() { next <- host }()
		text := request(b, e.state(host, closureOf(host, 1)), 0)
		for pb.Next() {
			if err := lines[host].exchange(text); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "checkins/s")
}

// BenchmarkHandshakes are full handshakes with a client certificate, client and
// server on the same cores.
func BenchmarkHandshakes(b *testing.B) {
	e := newEstate(b, "a")
	p := e.serve()
	cert := e.agentCert("a", time.Now().Add(-time.Hour))
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			p.dial(b, cert, nil).conn.Close()
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "handshakes/s")
}

// BenchmarkHeldRequest is the memory of a held check-in, the client's side of
// the connection included.
func BenchmarkHeldRequest(b *testing.B) {
	hosts := hostNames(b.N + 1)
	e := newEstate(b, hosts...)
	p := e.serve(func(c *Config) { c.MaxHandshakes, c.Log = 64, c.Log.Level(zerolog.Disabled) })
	lines := make([]*line, b.N)
	held := p.held(fmt.Sprint(b.N))
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	b.ResetTimer()
	for i := range lines {
		host := hosts[i+1]
		lines[i] = p.dial(b, e.agentCert(host, time.Now().Add(-time.Hour)), nil)
		defer lines[i].conn.Close()
		if _, err := lines[i].conn.Write(request(b, e.state(host, closureOf(host, 0)), 5*time.Minute)); err != nil {
			b.Fatal(err)
		}
	}
	p.eventually("all are held", held)
	b.StopTimer()
	runtime.GC()
	runtime.ReadMemStats(&after)
	total := float64(after.HeapAlloc+after.StackInuse) - float64(before.HeapAlloc+before.StackInuse)
	b.ReportMetric(total/float64(b.N), "bytes/held")
}
