package protocol

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
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
)

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
	return &tls.Config{Certificates: []tls.Certificate{*s.certificate(chain, key)}, ClientAuth: tls.RequestClientCert, ClientCAs: hints}
}

func (s *site) agent(hostname string) *tls.Certificate {
	s.t.Helper()
	key, _ := hostKey(s.t, 0x31)
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

func (s *site) client(cfg ClientConfig) *Client {
	s.t.Helper()
	if cfg.CAPEM == nil {
		cfg.CAPEM = s.caPEM()
	}
	c, err := NewClient(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(c.CloseIdle)
	return c
}

// against is a client of a control plane that answers with h.
func against(t testing.TB, h http.HandlerFunc) *Client {
	s := newSite(t)
	return s.client(ClientConfig{BaseURL: s.serve(h).URL})
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
			"at":"2026-03-01T12:00:00Z","moves":[],"waves":[],"blocked":[]}`)
	})
	ctx := t.Context()
	at := pki.At(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
	id := stableID
	for _, call := range []struct {
		want string // method, path and query
		body string // in the body; empty: no body
		do   func() error
	}{
		{"POST /v1/enroll", `"csrPem":"x"`, func() error { _, err := c.Enroll(ctx, &EnrollRequest{CSRPEM: "x"}); return err }},
		{"POST /v1/agent/renew", `{"csrPem":"x"}`, func() error { _, err := c.Renew(ctx, &RenewRequest{CSRPEM: "x"}); return err }},
		{"POST /v1/agent/bootstrap-report", `"event":"trust-error"`, func() error {
			return c.BootstrapReport(ctx, &BootstrapReport{OccurredAt: at, Event: BootstrapEvent{EventTrustError, []byte(`{}`)}})
		}},
		{"POST /v1/agent/checkin", `"healthProbes":[]`, func() error { _, err := c.Checkin(ctx, &CheckinRequest{}, 0); return err }},
		{"POST /v1/agent/confirm", `"wave":0`, func() error { return c.Confirm(ctx, &ConfirmRequest{}) }},
		{"POST /v1/agent/report", `"rollout":null`, func() error {
			_, err := c.Report(ctx, &ReportRequest{OccurredAt: at, Details: []byte(`{}`)})
			return err
		}},
		{"GET /v1/heads/a%2Fb/proof/x%3Fy", "", func() error { _, err := c.HeadProof(ctx, "a/b", "x?y"); return err }},
		{"GET /v1/hosts", "", func() error { _, err := c.Hosts(ctx); return err }},
		{"GET /v1/hosts", "", func() error { _, err := c.Raw(ctx, "/v1/hosts"); return err }},
		{"GET /v1/channels/stable", "", func() error { _, err := c.Channel(ctx, "stable"); return err }},
		{"GET /v1/deferrals", "", func() error { _, err := c.Deferrals(ctx); return err }},
		{"GET /v1/host-reports?limit=7", "", func() error { _, err := c.HostReports(ctx, 7); return err }},
		{"GET /v1/rollouts", "", func() error { _, err := c.Rollouts(ctx); return err }},
		{"GET /v1/rollouts/" + id + "/lifecycle", "", func() error { _, err := c.Lifecycle(ctx, id); return err }},
		{"GET /v1/rollouts/" + id + "/trace", "", func() error { _, err := c.Trace(ctx, id); return err }},
		{"GET /v1/whoami", "", func() error { _, err := c.Whoami(ctx); return err }},
		{"GET /v1/hosts/web-01/explain", "", func() error { _, err := c.Explain(ctx, "web-01"); return err }},
		{"GET /v1/plan", "", func() error { _, err := c.Plan(ctx); return err }},
		{"POST /v1/rollouts/" + id + "/pause", `{"reason":"why"}`, func() error { return c.Hold(ctx, id, "pause", "why") }},
		{"POST /v1/hosts/web-01/retry", `{"reason":"why"}`, func() error { return c.Retry(ctx, "web-01", "why") }},
		{"POST /v1/revocations", `{"hostname":"web-01","notBefore":"2026-03-01T12:00:00Z","reason":"why"}`, func() error { return c.Revoke(ctx, "web-01", &at, "why") }},
		{"POST /v1/revocations", `{"hostname":"web-01","reason":"why"}`, func() error { return c.Revoke(ctx, "web-01", nil, "why") }},
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
		if got.Header.Get(HeaderProtocol) != "1" || got.Proto != "HTTP/1.1" || got.Header.Get("Accept-Encoding") != "" || got.Header.Get("Prefer") != "" {
			t.Errorf("%s: %s, header %v", call.want, got.Proto, got.Header)
		}
		if kind := got.Header.Get("Content-Type"); (kind == "application/json") != (got.Method == http.MethodPost) {
			t.Errorf("%s: content type %q", call.want, kind)
		}
	}
}

// TestIDsAreCheckedFirst: what is no rollout id never becomes part of a URL.
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
	c := s.client(ClientConfig{BaseURL: server.URL + "/", Certificate: func() (*tls.Certificate, error) { return cert.Load(), nil }})
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
	c := s.client(ClientConfig{BaseURL: server.URL, Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
		dials.Add(1)
		return new(net.Dialer).DialContext(ctx, network, addr)
	}})
	for range 5 {
		if _, err := c.Checkin(t.Context(), &CheckinRequest{}, 0); err != nil {
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
	c := s.client(ClientConfig{BaseURL: server.URL, CAPEM: stranger.caPEM()})
	if _, err := c.Whoami(t.Context()); !errors.As(err, &unknown) {
		t.Errorf("another CA: %v", err)
	}
	// No bundle means the roots of the system, which do not hold ours.
	system, err := NewClient(ClientConfig{BaseURL: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := system.Whoami(t.Context()); err == nil {
		t.Error("without a bundle: believed")
	}
	c = s.client(ClientConfig{BaseURL: strings.Replace(server.URL, "127.0.0.1", "localhost", 1)})
	var name x509.HostnameError
	if _, err := c.Whoami(t.Context()); !errors.As(err, &name) {
		t.Errorf("another name: %v", err)
	}
}

func TestBadConfigurations(t *testing.T) {
	for _, cfg := range []ClientConfig{
		{}, {BaseURL: "cp.example.com:8080"}, {BaseURL: "http://cp.example.com"}, {BaseURL: "https://"}, {BaseURL: "https://u:p@cp"},
		{BaseURL: "https://cp?x=1"}, {BaseURL: "https://cp/#x"}, {BaseURL: "https://cp:port"},
		{BaseURL: "https://cp", CAPEM: []byte("not a certificate")},
	} {
		if _, err := NewClient(cfg); err == nil {
			t.Errorf("%+v was taken", cfg)
		}
	}
}

// TestHostileAnswers: a control plane that means harm costs its client a bounded
// amount of memory and time, and is never taken for one that answered.
func TestHostileAnswers(t *testing.T) {
	var followed atomic.Int32
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { followed.Add(1) }))
	defer elsewhere.Close()
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		is     error
		status int // of an *Error
	}{
		"redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
		}, nil, 307},
		"redirect to itself": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) }, nil, 302},
		"endless body": {func(w http.ResponseWriter, r *http.Request) {
			for chunk := make([]byte, 64<<10); ; {
				if _, err := w.Write(chunk); err != nil {
					return
				}
			}
		}, ErrTooLarge, 0},
		"endless refusal": {func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(500)
			for chunk := []byte(strings.Repeat("no ", 20_000)); ; {
				if _, err := w.Write(chunk); err != nil {
					return
				}
			}
		}, nil, 500},
		"huge header": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X", strings.Repeat("x", maxHeader))
			fmt.Fprint(w, `{"nextCheckinSecs":60}`)
		}, nil, 0},
		"no JSON":       {func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "<html>") }, pki.ErrSyntax, 0},
		"nothing":       {func(w http.ResponseWriter, r *http.Request) {}, pki.ErrSyntax, 0},
		"null":          {func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "null") }, pki.ErrShape, 0},
		"another shape": {func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, `{"nextCheckinSecs":"soon"}`) }, pki.ErrShape, 0},
		"repeated members": {func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, `{"nextCheckinSecs":1,"nextCheckinSecs":2}`)
		}, pki.ErrDuplicateKey, 0},
		"nested deeply": {func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, strings.Repeat("[", 1<<19)) }, pki.ErrDepth, 0},
		"cut off": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "100")
			fmt.Fprint(w, `{"nextCheckinSecs":1}`)
		}, io.ErrUnexpectedEOF, 0},
		"hangs up":   {func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }, io.EOF, 0},
		"no content": {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNoContent) }, pki.ErrSyntax, 0},
	} {
		t.Run(name, func(t *testing.T) {
			client := against(t, c.answer)
			answer, err := client.Checkin(t.Context(), &CheckinRequest{}, 0)
			if err == nil {
				t.Fatalf("taken for an answer: %+v", answer)
			}
			if c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("%v is not %v", err, c.is)
			}
			var refused *Error
			if errors.As(err, &refused); c.status != 0 && (refused == nil || refused.Status != c.status) {
				t.Errorf("%v is not status %d", err, c.status)
			}
			if len(err.Error()) > 2000 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
		})
	}
	if followed.Load() != 0 {
		t.Error("a redirect was followed")
	}
}

// TestAnswersAreBoundedByKind: a view grows with the fleet, what an agent is
// told does not.
func TestAnswersAreBoundedByKind(t *testing.T) {
	padding := strings.Repeat(" ", maxAnswer)
	c := against(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, `{"hosts":[],"nextCheckinSecs":60,"leaf":{},"index":0,"path":[]}`, padding)
	})
	if _, err := c.Hosts(t.Context()); err != nil {
		t.Errorf("view: %v", err)
	}
	if _, err := c.Checkin(t.Context(), &CheckinRequest{}, 0); !errors.Is(err, ErrTooLarge) {
		t.Errorf("check-in: %v", err)
	}
	if _, err := c.HeadProof(t.Context(), "stable", "web-01"); !errors.Is(err, ErrTooLarge) {
		t.Errorf("proof: %v", err)
	}
	if _, _, err := c.Head(t.Context(), "stable"); !errors.Is(err, ErrTooLarge) {
		t.Errorf("head: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		name, body string
		header     map[string]string
		status     int
		want       Error
		notReady   bool
	}{
		{"v1 not ready", `{"error":"control plane not ready","reason":"awaiting first signed artifact"}`, map[string]string{"Retry-After": "30"}, 503,
			Error{Message: "control plane not ready: awaiting first signed artifact", RetryAfter: 30 * time.Second}, true},
		{"another 503", "", nil, 503, Error{}, false},
		{"coded", `{"error":"no","code":"not-yours","hint":"use another certificate"}`, nil, 403,
			Error{Message: "no", Code: "not-yours", Hint: "use another certificate"}, false},
		{"plain text", "missing field `hostname`\n", nil, 422, Error{Message: "missing field `hostname`"}, false},
		{"colours and bells for a terminal", "\x1b[31mred\x07\r\n\x1b]0;title\x07\u202edone\xff", nil, 500,
			Error{Message: "[31mred  ]0;titledone?"}, false},
		{"very long", strings.Repeat("é", 2000), nil, 500, Error{Message: strings.Repeat("é", 500) + " …"}, false},
		{"gone", "", nil, 410, Error{}, false},
		{"retry after a date", "", map[string]string{"Date": "Sun, 01 Mar 2026 12:00:00 GMT", "Retry-After": "Sun, 01 Mar 2026 12:01:30 GMT"}, 429,
			Error{RetryAfter: 90 * time.Second}, false},
		{"retry after a past date", "", map[string]string{"Date": "Sun, 01 Mar 2026 12:00:00 GMT", "Retry-After": "Sun, 01 Mar 2026 11:00:00 GMT"}, 429, Error{}, false},
		{"retry in a century", "", map[string]string{"Retry-After": "2000000000"}, 503, Error{RetryAfter: maxRetryAfter}, false},
		{"retry that overflows", "", map[string]string{"Retry-After": "99999999999999999999"}, 503, Error{}, false},
		{"negative retry", "", map[string]string{"Retry-After": "-5"}, 503, Error{}, false},
		{"retry that is a word", "", map[string]string{"Retry-After": "soon"}, 503, Error{}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := against(t, func(w http.ResponseWriter, r *http.Request) {
				for name, value := range c.header {
					w.Header().Set(name, value)
				}
				w.WriteHeader(c.status)
				fmt.Fprint(w, c.body)
			})
			_, err := client.Whoami(t.Context())
			var got *Error
			if !errors.As(err, &got) {
				t.Fatalf("%v", err)
			}
			c.want.Status = c.status
			if *got != c.want || got.NotReady() != c.notReady {
				t.Errorf("%+v, not ready %v; want %+v", *got, got.NotReady(), c.want)
			}
		})
	}
}

func TestProofOfHead(t *testing.T) {
	entry := fleet.HostEntry{Hostname: "web-01", TargetClosure: "0a1b2c3d4f5g6h7i8j9k0l1m2n3p4q5r-nixos-system-web-01-25.11"}
	tree := pki.NewTree([][]byte{fleet.Leaf(entry)})
	head := &fleet.Head{Channel: "edge", HostSetRoot: tree.Root(), HostCount: 1}
	var p Proof
	answer := `{"leaf":{"hostname":"web-01", "waveIndex":0, "targetClosure":"` + entry.TargetClosure + `"},"index":0,"path":[]}`
	if _, err := DecodeStrict([]byte(answer), &p); err != nil {
		t.Fatal(err)
	}
	if got, err := p.Entry(head, "web-01"); err != nil || got != entry {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := p.Entry(head, "web-02"); !errors.Is(err, fleet.ErrNotNamed) {
		t.Errorf("for another host: %v", err)
	}
}

// virtual runs f in a bubble of virtual time with a client whose network is
// memory, and a control plane behind it that answers with h.
func virtual(t *testing.T, h http.HandlerFunc, f func(t *testing.T, c *Client)) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		dialled := make(chan net.Conn)
		ctx, stop := context.WithCancel(t.Context())
		var answering sync.WaitGroup
		counted := func(w http.ResponseWriter, r *http.Request) {
			answering.Add(1)
			defer answering.Done()
			h(w, r)
		}
		server := &http.Server{Handler: http.HandlerFunc(counted), BaseContext: func(net.Listener) context.Context { return ctx }}
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = server.Serve(tls.NewListener(&memoryListener{dialled, ctx}, s.server()))
		}()
		c, err := NewClient(ClientConfig{BaseURL: "https://cp.example.com", CAPEM: s.caPEM(),
			Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
				if h == nil {
					<-ctx.Done()
					return nil, ctx.Err()
				}
				near, far := net.Pipe()
				dialled <- far
				return near, nil
			}})
		if err != nil {
			t.Fatal(err)
		}
		f(t, c)
		stop()
		c.CloseIdle()
		_ = server.Close()
		<-done
		answering.Wait()
	})
}

type memoryListener struct {
	conns chan net.Conn
	ctx   context.Context
}

func (l *memoryListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.ctx.Done():
		return nil, net.ErrClosed
	}
}
func (l *memoryListener) Close() error   { return nil }
func (l *memoryListener) Addr() net.Addr { return &net.IPAddr{} }

// elapsed runs do, which must fail with a timeout, and measures it.
func elapsed(t *testing.T, want time.Duration, do func() error) {
	t.Helper()
	start := time.Now()
	err := do()
	if took := time.Since(start); err == nil || took != want {
		t.Errorf("ended after %s, want %s: %v", took, want, err)
	}
}

func TestTimeouts(t *testing.T) {
	t.Run("no connection", func(t *testing.T) {
		virtual(t, nil, func(t *testing.T, c *Client) {
			elapsed(t, 10*time.Second, func() error { _, err := c.Whoami(t.Context()); return err })
		})
	})
	silent := func(w http.ResponseWriter, r *http.Request) {
		// What is not read stays in a pipe without a buffer and would hold up the
		// client's last word.
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	}
	t.Run("no answer", func(t *testing.T) {
		virtual(t, silent, func(t *testing.T, c *Client) {
			elapsed(t, 30*time.Second, func() error { _, err := c.Whoami(t.Context()); return err })
			elapsed(t, 30*time.Second, func() error { _, err := c.Checkin(t.Context(), &CheckinRequest{}, 0); return err })
			elapsed(t, 30*time.Second, func() error { _, err := c.Checkin(t.Context(), &CheckinRequest{}, 5*time.Second); return err })
			elapsed(t, 315*time.Second, func() error { _, err := c.Checkin(t.Context(), &CheckinRequest{}, 300*time.Second); return err })
			elapsed(t, 30*time.Second, func() error { return c.Events(t.Context(), 0, nil) })
		})
	})
	t.Run("one byte a second", func(t *testing.T) {
		virtual(t, func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				fmt.Fprint(w, " ")
				_ = http.NewResponseController(w).Flush()
				time.Sleep(time.Second)
			}
		}, func(t *testing.T, c *Client) {
			elapsed(t, 30*time.Second, func() error { _, err := c.Whoami(t.Context()); return err })
		})
	})
	t.Run("cancelled", func(t *testing.T) {
		virtual(t, silent, func(t *testing.T, c *Client) {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			elapsed(t, 3*time.Second, func() error { _, err := c.Checkin(ctx, &CheckinRequest{}, time.Minute); return err })
			again, cancelAgain := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancelAgain()
			elapsed(t, 3*time.Second, func() error {
				err := c.Events(again, 0, nil)
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("events: %v", err)
				}
				return err
			})
		})
	})
}

func TestHeldCheckin(t *testing.T) {
	virtual(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Prefer") == "wait=120" {
			w.Header().Set("Preference-Applied", "wait")
			time.Sleep(2 * time.Minute)
		}
		fmt.Fprint(w, `{"nextCheckinSecs":60,"head":{"channel":"stable","hash":"x"}}`)
	}, func(t *testing.T, c *Client) {
		answer, err := c.Checkin(t.Context(), &CheckinRequest{}, 2*time.Minute)
		if err != nil || !answer.Held || answer.Head == nil || answer.Target != nil {
			t.Errorf("held: %+v, %v", answer, err)
		}
		answer, err = c.Checkin(t.Context(), &CheckinRequest{}, time.Second)
		if err != nil || answer.Held {
			t.Errorf("by a control plane that does not hold: %+v, %v", answer, err)
		}
	})
}

func TestEvents(t *testing.T) {
	event := func(seq int) string {
		return fmt.Sprintf(`{"seq":%d,"at":"2026-03-01T12:00:00Z","kind":"dispatch","host":"web-01"}`, seq)
	}
	virtual(t, func(w http.ResponseWriter, r *http.Request) {
		if r.RequestURI != "/v1/events?after=41" || r.Header.Get("Accept") != "text/event-stream" {
			http.NotFound(w, r)
			return
		}
		for range 40 { // ten minutes of nothing but comments
			fmt.Fprint(w, ": still here\n\n")
			_ = http.NewResponseController(w).Flush()
			time.Sleep(15 * time.Second)
		}
		fmt.Fprintf(w, "id: 42\ndata: %s\n\n", event(42))
		fmt.Fprintf(w, "event: x\r\ndata:%s\r\n\r\n", strings.Replace(event(43), ",", ",\r\ndata:", 1))
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}, func(t *testing.T, c *Client) {
		var seqs []int64
		start := time.Now()
		err := c.Events(t.Context(), 41, func(e Event) error {
			seqs = append(seqs, e.Seq)
			return nil
		})
		if err == nil || !strings.Contains(err.Error(), "silent") || time.Since(start) != 11*time.Minute {
			t.Errorf("ended after %s: %v", time.Since(start), err)
		}
		if fmt.Sprint(seqs) != "[42 43]" {
			t.Errorf("events %v", seqs)
		}
	})
}

func TestReadEvents(t *testing.T) {
	const good = "data: {\"seq\":1,\"at\":\"2026-03-01T12:00:00Z\",\"kind\":\"k\"}\n\n"
	stop := errors.New("enough")
	for _, c := range []struct {
		name, stream string
		events       int
		err          error
	}{
		{"nothing", "", 0, io.EOF},
		{"one", good, 1, io.EOF},
		{"cut off", good + good[:len(good)-1], 1, io.EOF},
		{"no JSON", good + "data: x\n\n" + good, 1, pki.ErrSyntax},
		{"another shape", "data: {\"seq\":\"1\"}\n\n", 0, pki.ErrShape},
		{"endless line", good + "data: " + strings.Repeat("x", 2*maxEvent), 1, ErrTooLarge},
		{"endless event", good + strings.Repeat("data: xxxxxxxxxxxxxxxx\n", maxEvent/16), 1, ErrTooLarge},
		{"enough", strings.Repeat(good, 9), 3, stop},
	} {
		events := 0
		err := readEvents(strings.NewReader(c.stream), func() {}, func(Event) error {
			if events++; events == 3 {
				return stop
			}
			return nil
		})
		if events != c.events || !errors.Is(err, c.err) {
			t.Errorf("%s: %d events, %v; want %d, %v", c.name, events, err, c.events, c.err)
		}
	}
}

func FuzzReadEvents(f *testing.F) {
	f.Add("id: 1\ndata: {\"seq\":1,\"at\":\"2026-03-01T12:00:00Z\",\"kind\":\"k\"}\n\n: x\r\n\r\n")
	f.Fuzz(func(t *testing.T, stream string) {
		if err := readEvents(strings.NewReader(stream), func() {}, func(Event) error { return nil }); err == nil {
			t.Fatal("a stream ended without an error")
		}
	})
}
