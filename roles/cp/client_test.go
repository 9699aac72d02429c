package cp

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet/roles/protocol"
	"nixfleet/roles/protocol/client"
)

// client speaks as the holder of cert, which may be nil.
func (p *plane) client(cert *tls.Certificate) *client.Client {
	p.t.Helper()
	c, err := client.New(client.Config{
		BaseURL: p.url, CAPEM: certPEM(p.root.Cert), Timeout: 20 * time.Second,
		Certificate: func() (*tls.Certificate, error) { return cert, nil },
	})
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(c.CloseIdle)
	return c
}

func (p *plane) agent(host string) *client.Client {
	return p.client(p.agentCert(host, time.Now().Add(-time.Hour)))
}

func (p *plane) operator() *client.Client { return p.client(p.operatorCert("operator-jo")) }

// web is a plain HTTP client with cert, for requests that no client of ours sends.
func (p *plane) web(cert *tls.Certificate) *http.Client {
	p.t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(p.root.Cert)
	config := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	if cert != nil {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	transport := &http.Transport{TLSClientConfig: config}
	p.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second}
}

// sent is one request by hand.
type sent struct {
	method, path string
	body         any // string and []byte go as they are
	header       map[string]string
}

type answer struct {
	status int
	header http.Header
	body   string
}

func (p *plane) send(c *http.Client, r sent) answer {
	p.t.Helper()
	var body []byte
	switch b := r.body.(type) {
	case nil:
	case string:
		body = []byte(b)
	case []byte:
		body = b
	default:
		var err error
		if body, err = json.Marshal(b); err != nil {
			p.t.Fatal(err)
		}
	}
	req, err := http.NewRequest(r.method, p.url+r.path, bytes.NewReader(body))
	if err != nil {
		p.t.Fatal(err)
	}
	if r.method == http.MethodPost {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set(protocol.HeaderProtocol, "1")
	for name, value := range r.header {
		if value == "" {
			req.Header.Del(name)
		} else {
			req.Header.Set(name, value)
		}
	}
	resp, err := c.Do(req)
	if err != nil {
		p.t.Fatalf("%s %s: %v\n%s", r.method, r.path, err, p.log)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatalf("%s %s: %v", r.method, r.path, err)
	}
	return answer{resp.StatusCode, resp.Header, string(text)}
}

// status is that of an *Error, 0 for nil.
func status(t testing.TB, err error) int {
	t.Helper()
	if err == nil {
		return 0
	}
	var refused *client.Error
	if !errors.As(err, &refused) {
		t.Fatalf("no refusal: %v", err)
	}
	return refused.Status
}

// state is a check-in of an idle host.
func (e *estate) state(host, closure string) *protocol.CheckinRequest {
	uptime := uint64(60)
	return &protocol.CheckinRequest{
		Hostname: host, AgentVersion: "0.0.1", UptimeSecs: &uptime, HealthProbes: []protocol.ProbeResult{},
		CurrentGeneration: protocol.Generation{ClosureHash: closure, BootID: "b0"},
		Phase:             &protocol.Phase{Name: protocol.PhaseIdle},
	}
}

func (p *plane) checkin(c *client.Client, req *protocol.CheckinRequest, wait time.Duration) *protocol.CheckinResponse {
	p.t.Helper()
	resp, err := c.Checkin(context.Background(), req, wait)
	if err != nil {
		p.t.Fatalf("check-in: %v\n%s", err, p.log)
	}
	return resp
}

// metricOf is the value of the line of a metric, with its labels if any.
func metricOf(text, name string) string {
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(rest)
		}
	}
	return ""
}
