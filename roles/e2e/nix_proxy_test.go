package e2e

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet/roles/protocol"
)

// nixLie is what a hostile control plane answers instead of the truth.
type nixLie struct {
	answer func(truth protocol.CheckinResponse) protocol.CheckinResponse // of a check-in
	files  map[string][]byte                                             // path -> body
}

// nixImpostor is a control plane in another's hands: it has the real server
// certificate and, unlike a real one, also its host's key, so that it can ask
// the true control plane for what it then twists.
type nixImpostor struct {
	server *httptest.Server

	mu      sync.Mutex
	gag     bool // lets no target and no head through, and keeps them
	truth   *protocol.CheckinResponse
	lie     *nixLie
	lied    int       // check-ins answered with the lie
	begun   time.Time // when it was told first
	reports []protocol.ReportRequest
	files   map[string][]byte // what passed through, newest
}

func (f *nixFleet) newImpostor(h *nixHost) *nixImpostor {
	f.t.Helper()
	p := &nixImpostor{files: map[string][]byte{}}
	upstream, err := url.Parse("https://" + f.address)
	if err != nil {
		f.t.Fatal(err)
	}
	rootPEM, err := os.ReadFile(f.key("fleet-root.cert.pem"))
	if err != nil {
		f.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(rootPEM)
	transport := &http.Transport{TLSClientConfig: &tls.Config{
		RootCAs: roots,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			text, err := os.ReadFile(filepath.Join(h.dir, "agent-cert.pem"))
			if err != nil {
				return &tls.Certificate{}, nil // not enrolled yet
			}
			block, _ := pem.Decode(text)
			return &tls.Certificate{Certificate: [][]byte{block.Bytes}, PrivateKey: h.key.Crypto()}, nil
		},
	}, DisableKeepAlives: true}
	proxy := &httputil.ReverseProxy{
		Transport: transport,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(upstream)
			r.Out.Header.Del("Prefer") // plain polls, so that a lie begins at once
			r.Out.Header.Del("Accept-Encoding")
		},
		ModifyResponse: p.pass,
	}
	p.server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !p.answer(w, r) {
			proxy.ServeHTTP(w, r)
		}
	}))
	cert, err := tls.LoadX509KeyPair(f.key("server.cert.pem"), f.key("server.key.pem"))
	if err != nil {
		f.t.Fatal(err)
	}
	p.server.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequestClientCert}
	p.server.StartTLS()
	f.t.Cleanup(func() {
		p.server.CloseClientConnections()
		p.server.Close()
	})
	h.url = p.server.URL
	return p
}

// pass looks at a true answer on its way.
func (p *nixImpostor) pass(r *http.Response) error {
	if r.StatusCode != http.StatusOK {
		return nil
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if r.Request.Method == http.MethodGet {
		p.files[r.Request.URL.Path] = body
	}
	if p.gag && r.Request.URL.Path == "/v1/agent/checkin" {
		var answer protocol.CheckinResponse
		if err := json.Unmarshal(body, &answer); err != nil {
			return err
		}
		if answer.Target != nil {
			kept := answer
			p.truth = &kept
		}
		answer.Target, answer.Head, answer.Rollback = nil, nil, nil
		if body, err = json.Marshal(answer); err != nil {
			return err
		}
		r.ContentLength = int64(len(body))
		r.Header.Del("Content-Length")
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	return nil
}

// answer lies, where a lie is told.
func (p *nixImpostor) answer(w http.ResponseWriter, r *http.Request) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lie == nil {
		return false
	}
	reply := func(v any) bool {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set(protocol.HeaderProtocol, "1")
		data, ok := v.([]byte)
		if !ok {
			var err error
			if data, err = json.Marshal(v); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return true
			}
		}
		w.Write(data)
		return true
	}
	switch {
	case r.URL.Path == "/v1/agent/checkin":
		io.Copy(io.Discard, r.Body)
		if p.lied++; p.lied == 1 {
			p.begun = time.Now().Add(-time.Millisecond) // reports say milliseconds
		}
		truth := protocol.CheckinResponse{NextCheckinSecs: 1}
		if p.truth != nil {
			truth = *p.truth
			if truth.Target != nil {
				target := *truth.Target
				truth.Target = &target
			}
		}
		return reply(p.lie.answer(truth))
	case r.URL.Path == "/v1/agent/report":
		var report protocol.ReportRequest
		if err := json.UnmarshalRead(r.Body, &report); err == nil {
			p.reports = append(p.reports, report)
		}
		return reply(protocol.ReportResponse{EventID: "kept-from-everybody"})
	}
	if body, ok := p.lie.files[r.URL.Path]; ok {
		return reply(body)
	}
	return false
}

// await waits for a true answer with a target, which the host does not get.
func (p *nixImpostor) await(f *nixFleet, closure string) {
	f.t.Helper()
	f.until("a target for the impostor's host", func() string {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.truth == nil || p.truth.Target.ClosureHash != closure {
			return "the control plane has not told it yet"
		}
		return ""
	})
}

func (p *nixImpostor) set(gag bool, lie *nixLie) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gag, p.lie, p.lied, p.reports = gag, lie, 0, nil
}

func (p *nixImpostor) file(t *testing.T, path string) []byte {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.files[path] == nil {
		t.Fatalf("%s never passed by", path)
	}
	return slices.Clone(p.files[path])
}

// refused waits until the host has been lied to and has reported the event with
// these words since, and wants its links where they were.
func (p *nixImpostor) refused(f *nixFleet, h *nixHost, lie *nixLie, event, words string) {
	f.t.Helper()
	current, profile := h.runs(f.t)
	p.set(true, lie)
	f.until("report "+event+" ("+words+")", func() string {
		p.mu.Lock()
		defer p.mu.Unlock()
		got := []string{fmt.Sprintf("told %d times", p.lied)}
		for _, r := range p.reports {
			// Reports of one answer go out before the next check-in.
			if r.Event == event && strings.Contains(string(r.Details), words) && r.OccurredAt.After(p.begun) && p.lied >= 2 {
				return ""
			}
			got = append(got, r.Event+" "+string(r.Details))
		}
		return strings.Join(got, "; ")
	})
	if c, pr := h.runs(f.t); c != current || pr != profile {
		f.t.Errorf("%s went from %s to %s (profile %s)", h.name, current, c, pr)
	}
	s := f.status(h)
	if s.Agent == nil || !strings.Contains(s.Agent.Waiting, "refused the answer of the control plane") {
		f.t.Errorf("status of %s does not tell of the refusal: %+v", h.name, s.Agent)
	}
}
