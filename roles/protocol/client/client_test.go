package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"nixfleet/pki"
	"nixfleet/roles/protocol"
)

const stableID = "3c5da1d73cca1c7f21990e857f1ce67ba1025443bffac40d135d6425798df95e"

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// site is a fleet's certificates: a root that signs servers, and an issuing CA
// that signs agents.
type site struct {
	t       testing.TB
	now     time.Time
	root    *pki.CA
	issuing *pki.CA
}

func newSite(t testing.TB) *site {
	t.Helper()
	now := time.Now()
	root, _, err := pki.NewFleetRoot("fleet root", now, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	issuing, _, err := root.NewIssuingCA("fleet.example.com", now, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return &site{t: t, now: now, root: root, issuing: issuing}
}

func (s *site) caPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.root.Cert.Raw})
}

func (s *site) certificate(chain []byte, key *pki.PrivateKey) *tls.Certificate {
	s.t.Helper()
	block, _ := pem.Decode(chain)
	if block == nil {
		s.t.Fatal("no certificate")
	}
	return &tls.Certificate{Certificate: [][]byte{block.Bytes}, PrivateKey: key.Crypto()}
}

// server's TLS asks for a certificate and names only the root.
func (s *site) server() *tls.Config {
	s.t.Helper()
	key, err := pki.GenerateKey(pki.AlgorithmP256)
	if err != nil {
		s.t.Fatal(err)
	}
	chain, err := s.root.IssueServer([]string{"127.0.0.1", "cp.example.com"}, key.Crypto().Public(), s.now, time.Hour)
	if err != nil {
		s.t.Fatal(err)
	}
	hints := x509.NewCertPool()
	hints.AddCert(s.root.Cert)
	return &tls.Config{Certificates: []tls.Certificate{*s.certificate(chain, key)}, ClientAuth: tls.RequestClientCert,
		ClientCAs: hints}
}

func (s *site) agent(hostname string) *tls.Certificate {
	s.t.Helper()
	key, err := pki.GenerateKey(pki.AlgorithmEd25519)
	if err != nil {
		s.t.Fatal(err)
	}
	request, err := pki.NewCSR(key.Crypto(), hostname)
	if err != nil {
		s.t.Fatal(err)
	}
	csr, err := pki.ParseCSR(request)
	if err != nil {
		s.t.Fatal(err)
	}
	chain, _, err := s.issuing.IssueAgent(csr, hostname, "fleet.example.com", s.now, time.Hour)
	if err != nil {
		s.t.Fatal(err)
	}
	return s.certificate(chain, key)
}

// serve starts a control plane that answers with h.
func (s *site) serve(h http.HandlerFunc) *httptest.Server {
	server := httptest.NewUnstartedServer(h)
	server.TLS = s.server()
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	s.t.Cleanup(server.Close)
	return server
}

func (s *site) client(cfg Config) *Client {
	s.t.Helper()
	if cfg.CAPEM == nil {
		cfg.CAPEM = s.caPEM()
	}
	c, err := New(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(c.CloseIdle)
	return c
}

// against is a client of a control plane that answers with h.
func against(t testing.TB, h http.HandlerFunc) *Client {
	s := newSite(t)
	return s.client(Config{BaseURL: s.serve(h).URL})
}

func TestRequests(t *testing.T) {
	var got *http.Request
	var body string
	c := against(t, func(w http.ResponseWriter, r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		got, body = r, string(text)
		// Enough of an answer for each call.
		fmt.Fprint(w, `{"certPem":"","notAfter":"2026-03-01T12:00:00Z","nextCheckinSecs":60,"eventId":"e","leaf":{},"index":0,"path":[],
			"hosts":[],"name":"","freshness_window_minutes":1,"deferrals":[],"reports":[],"rollouts":[],"rolloutId":"","rollout_id":"","events":[],
			"cn":"","issuedAt":"2026-03-01T12:00:00+00:00","hostname":"","channel":"","reason":{"code":"","gate":"","text":"","next":""},
			"at":"2026-03-01T12:00:00Z","moves":[],"entries":[],"waves":[],"channels":[],"blocked":[],
			"host":{"hostname":"","channel":"","converged":true,"outstandingComplianceFailures":0,"outstandingRuntimeGateErrors":0,
			"verifiedEventCount":0},"dispatches":[],"certificates":[],"agents":0}`)
	})
	ctx := t.Context()
	at := pki.At(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
	id := stableID
	for _, call := range []struct {
		want string // method, path and query
		body string // in the body; empty: no body
		do   func() error
	}{
		{"POST /v1/enroll", `"csrPem":"x"`,
			func() error { _, err := c.Enroll(ctx, &protocol.EnrollRequest{CSRPEM: "x"}); return err }},
		{"POST /v1/agent/renew", `{"csrPem":"x"}`,
			func() error { _, err := c.Renew(ctx, &protocol.RenewRequest{CSRPEM: "x"}); return err }},
		{"POST /v1/agent/bootstrap-report", `"event":"trust-error"`, func() error {
			return c.BootstrapReport(ctx, &protocol.BootstrapReport{OccurredAt: at,
				Event: protocol.BootstrapEvent{Event: protocol.EventTrustError, Details: []byte(`{}`)}})
		}},
		{"POST /v1/agent/checkin", `"healthProbes":[]`,
			func() error { _, err := c.Checkin(ctx, &protocol.CheckinRequest{}, 0); return err }},
		{"POST /v1/agent/confirm", `"wave":0`,
			func() error { _, err := c.Confirm(ctx, &protocol.ConfirmRequest{}); return err }},
		{"POST /v1/agent/report", `"rollout":null`, func() error {
			_, err := c.Report(ctx, &protocol.ReportRequest{OccurredAt: at, Details: []byte(`{}`)})
			return err
		}},
		{"GET /v1/heads/a%2Fb/proof/x%3Fy", "", func() error { _, err := c.HeadProof(ctx, "a/b", "x?y"); return err }},
		{"GET /v1/hosts", "", func() error { _, err := c.Hosts(ctx); return err }},
		{"GET /v1/hosts?channel=e%2A&limit=5&order=worst", "", func() error {
			_, err := c.HostsPage(ctx, HostsQuery{Channel: "e*", WorstFirst: true, Limit: 5})
			return err
		}},
		{"GET /v1/hosts", "", func() error { _, err := c.Raw(ctx, "/v1/hosts"); return err }},
		{"GET /v1/hosts?closure=a%2A&order=name&rollout=" + id + "&wave=0", "", func() error {
			_, err := c.HostsPage(ctx, HostsQuery{Closure: "a*", Rollout: id, Wave: new(int)})
			return err
		}},
		{"GET /v1/channels", "", func() error { _, err := c.Channels(ctx); return err }},
		{"GET /v1/host-reports?limit=7&host=a%26b", "", func() error { _, err := c.HostReports(ctx, "a&b", 7); return err }},
		{"GET /v1/history?before=9&host=a&kind=k&limit=5", "", func() error {
			_, err := c.History(ctx, protocol.HistoryQuery{Host: "a", Kind: "k", Before: 9, Limit: 5})
			return err
		}},
		{"GET /v1/audit?limit=5", "", func() error { _, err := c.Audit(ctx, 0, 5); return err }},
		{"GET /v1/rollouts?all=true&hosts=false", "", func() error {
			_, err := c.Rollouts(ctx, RolloutsQuery{All: true, Heads: true})
			return err
		}},
		{"GET /v1/rollouts/" + id + "/waves", "", func() error { _, err := c.Waves(ctx, id); return err }},
		{"GET /v1/channels/stable", "", func() error { _, err := c.Channel("stable").Read(ctx); return err }},
		{"GET /v1/host-reports?limit=7", "", func() error { _, err := c.HostReports(ctx, "", 7); return err }},
		{"GET /v1/rollouts", "", func() error { _, err := c.Rollouts(ctx, RolloutsQuery{}); return err }},
		{"GET /v1/rollouts/" + id + "/lifecycle", "", func() error { _, err := c.Lifecycle(ctx, id); return err }},
		{"GET /v1/rollouts/" + id + "/trace", "", func() error { _, err := c.Trace(ctx, id); return err }},
		{"GET /v1/whoami", "", func() error { _, err := c.Whoami(ctx); return err }},
		{"GET /v1/hosts/web-01/explain", "", func() error { _, err := c.Explain(ctx, "web-01"); return err }},
		{"GET /v1/hosts/web-01", "", func() error { _, err := c.Host(ctx, "web-01"); return err }},
		{"GET /v1/certificates?limit=7", "", func() error { _, err := c.Certificates(ctx, 7); return err }},
		{"GET /v1/plan", "", func() error { _, err := c.Plan(ctx, nil); return err }},
		{"POST /v1/plan", "fleet.resolved.json\x00", func() error {
			_, err := c.Plan(ctx, map[string][]byte{"fleet.resolved.json": []byte("{}")})
			return err
		}},
		{"GET /v1/rollouts?all=true", "", func() error { _, err := c.Rollouts(ctx, RolloutsQuery{All: true}); return err }},
		{"POST /v1/rollouts/" + id + "/pause", `{"reason":"why"}`, func() error { return c.Hold(ctx, id, "pause", "why") }},
		{"POST /v1/hosts/web-01/retry", `{"reason":"why"}`, func() error { return c.Retry(ctx, "web-01", "why") }},
		{"POST /v1/channels/stable/freeze", `{"reason":"why","until":"2026-03-01T12:00:00Z"}`,
			func() error { return c.Channel("stable").Freeze(ctx, at.Time, "why") }},
		{"POST /v1/channels/stable/thaw", `{"reason":"why"}`, func() error { return c.Channel("stable").Thaw(ctx, "why") }},
		{"POST /v1/revocations", `{"hostname":"web-01","notBefore":"2026-03-01T12:00:00Z","reason":"why"}`,
			func() error { return c.Revocations().Add(ctx, "web-01", &at, "why") }},
		{"POST /v1/revocations", `{"hostname":"web-01","reason":"why"}`,
			func() error { return c.Revocations().Add(ctx, "web-01", nil, "why") }},
		{"POST /v1/poke", `{}`, func() error { return c.Poke(ctx) }},
	} {
		got = nil
		if err := call.do(); err != nil || got == nil {
			t.Errorf("%s: %v", call.want, err)
			continue
		}
		if line := got.Method + " " + got.RequestURI; line != call.want {
			t.Errorf("sent %s, want %s", line, call.want)
		}
		if !strings.Contains(body, call.body) || call.body == "" && body != "" {
			t.Errorf("%s: body %s", call.want, body)
		}
		if got.Header.Get(protocol.HeaderProtocol) != "1" || got.Proto != "HTTP/1.1" ||
			got.Header.Get("Accept-Encoding") != "" || got.Header.Get("Prefer") != "" {
			t.Errorf("%s: %s, header %v", call.want, got.Proto, got.Header)
		}
		wantKind := ""
		switch {
		case call.want == "POST /v1/plan":
			wantKind = protocol.TarType
		case got.Method == http.MethodPost:
			wantKind = "application/json"
		}
		if kind := got.Header.Get("Content-Type"); kind != wantKind {
			t.Errorf("%s: content type %q", call.want, kind)
		}
	}
}

// TestIDsAreCheckedFirst: what is not a rollout id never becomes part of a URL.
func TestIDsAreCheckedFirst(t *testing.T) {
	c := against(t, func(w http.ResponseWriter, r *http.Request) { t.Errorf("asked for %s", r.RequestURI) })
	for _, id := range []string{"", "..", "../hosts", strings.Repeat("A", 64), stableID + "/x"} {
		_, _, err := c.Manifest(t.Context(), id)
		_, traceErr := c.Trace(t.Context(), id)
		_, lifecycleErr := c.Lifecycle(t.Context(), id)
		if err == nil || traceErr == nil || lifecycleErr == nil || c.Hold(t.Context(), id, "pause", "") == nil {
			t.Errorf("id %q was sent", id)
		}
	}
	if c.Hold(t.Context(), stableID, "delete", "") == nil {
		t.Error("an unknown action was sent")
	}
}

func TestSignedDocuments(t *testing.T) {
	sig := strings.Repeat("s", 64)
	c := against(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v1/heads/stable", "/v1/rollouts/" + stableID, "/v1/heads/short":
			fmt.Fprint(w, "{ as it is stored }\n")
		case "/v1/heads/stable/sig", "/v1/rollouts/" + stableID + "/sig":
			fmt.Fprint(w, sig)
		case "/v1/heads/short/sig":
			fmt.Fprint(w, sig[1:])
		default:
			http.NotFound(w, r)
		}
	})
	for name, get := range map[string]func() ([]byte, []byte, error){
		"head":     func() ([]byte, []byte, error) { return c.Head(t.Context(), "stable") },
		"manifest": func() ([]byte, []byte, error) { return c.Manifest(t.Context(), stableID) },
	} {
		body, got, err := get()
		if err != nil || string(body) != "{ as it is stored }\n" || string(got) != sig {
			t.Errorf("%s: %q %q %v", name, body, got, err)
		}
	}
	if _, _, err := c.Head(t.Context(), "short"); err == nil {
		t.Error("a signature of 63 bytes was taken")
	}
	var refused *Error
	if _, _, err := c.Head(t.Context(), "none"); !errors.As(err, &refused) || refused.Status != http.StatusNotFound {
		t.Errorf("no such head: %v", err)
	}
}

// TestCertificateWhateverTheHints: the server names only the root, the client
// holds only a leaf of the issuing CA; it is presented all the same, and a
// renewed one after the idle connections were dropped.
func TestCertificateWhateverTheHints(t *testing.T) {
	s := newSite(t)
	var seen atomic.Value
	server := s.serve(func(w http.ResponseWriter, r *http.Request) {
		name := "nobody"
		if len(r.TLS.PeerCertificates) > 0 {
			name = r.TLS.PeerCertificates[0].Subject.CommonName
		}
		seen.Store(name)
		fmt.Fprint(w, `{"cn":"","issuedAt":"2026-03-01T12:00:00Z"}`)
	})
	var cert atomic.Pointer[tls.Certificate]
	c := s.client(Config{BaseURL: server.URL + "/",
		Certificate: func() (*tls.Certificate, error) { return cert.Load(), nil }})
	ask := func(want string) {
		t.Helper()
		if _, err := c.Whoami(t.Context()); err != nil || seen.Load() != want {
			t.Errorf("seen as %v, want %s; %v", seen.Load(), want, err)
		}
	}
	ask("nobody")
	cert.Store(s.agent("web-01"))
	ask("nobody") // the connection is kept
	c.CloseIdle()
	ask("agent-web-01.fleet.example.com")
	cert.Store(s.agent("web-02"))
	c.CloseIdle()
	ask("agent-web-02.fleet.example.com")
}

func TestConnectionsAreKept(t *testing.T) {
	s := newSite(t)
	server := s.serve(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, `{"nextCheckinSecs":60}`) })
	var dials atomic.Int32
	c := s.client(Config{BaseURL: server.URL, Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
		dials.Add(1)
		return new(net.Dialer).DialContext(ctx, network, addr)
	}})
	for range 5 {
		if _, err := c.Checkin(t.Context(), &protocol.CheckinRequest{}, 0); err != nil {
			t.Fatal(err)
		}
	}
	if n := dials.Load(); n != 1 {
		t.Errorf("%d connections for five requests", n)
	}
}

func TestServerIsNotBelieved(t *testing.T) {
	s, stranger := newSite(t), newSite(t)
	server := s.serve(func(w http.ResponseWriter, r *http.Request) {
		t.Error("a request reached a server that is not believed")
	})
	var unknown x509.UnknownAuthorityError
	c := s.client(Config{BaseURL: server.URL, CAPEM: stranger.caPEM()})
	if _, err := c.Whoami(t.Context()); !errors.As(err, &unknown) {
		t.Errorf("another CA: %v", err)
	}
	// No bundle means the roots of the system, which do not hold ours.
	system, err := New(Config{BaseURL: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := system.Whoami(t.Context()); err == nil {
		t.Error("without a bundle: believed")
	}
	c = s.client(Config{BaseURL: strings.Replace(server.URL, "127.0.0.1", "localhost", 1)})
	var name x509.HostnameError
	if _, err := c.Whoami(t.Context()); !errors.As(err, &name) {
		t.Errorf("another name: %v", err)
	}
}

func TestBadConfigurations(t *testing.T) {
	for _, cfg := range []Config{
		{}, {BaseURL: "cp.example.com:8080"}, {BaseURL: "http://cp.example.com"}, {BaseURL: "https://"},
		{BaseURL: "https://u:p@cp"},
		{BaseURL: "https://cp?x=1"}, {BaseURL: "https://cp/#x"}, {BaseURL: "https://cp:port"},
		{BaseURL: "https://cp", CAPEM: []byte("not a certificate")},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%+v was taken", cfg)
		}
	}
}
