package machines

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet/pki"
	"nixfleet/roles/protocol"
)

func init() {
	scenarios = append(scenarios, scenario{"recall", playRecall}, scenario{"confirm-refused", playConfirmRefused})
}

// puppet is a control plane in somebody's hands: it speaks with the true one as the
// host, puts a rollback into the answers, and refuses confirms.
type puppet struct {
	url string

	mu       sync.Mutex
	machine  *machine
	rollback *protocol.Rollback
	gag      bool // no target is let through
	gone     bool // confirms are answered with 410
	told     int
}

func (g *ground) newPuppet(t *testing.T, cp *controlPlane) *puppet {
	t.Helper()
	p := &puppet{}
	upstream, err := url.Parse(cp.url())
	must(t, err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(g.read("keys/fleet-root.cert.pem")))
	proxy := &httputil.ReverseProxy{
		Transport: &http.Transport{
			DialContext: g.net.dial, DisableKeepAlives: true,
			TLSClientConfig: &tls.Config{RootCAs: roots,
				GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return p.certificate() }},
		},
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(upstream)
			r.Out.Header.Del("Prefer") // plain polls, so that a demand is heard at once
			r.Out.Header.Del("Accept-Encoding")
		},
		ModifyResponse: p.pass,
	}
	cert, err := tls.LoadX509KeyPair(g.path("keys/server.cert.pem"), g.path("keys/server.key.pem"))
	must(t, err)
	listener := g.net.listen(t, hubAddress+":0")
	p.url = "https://" + listener.Addr().String()
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		gone := p.gone && r.URL.Path == protocol.ConfirmPath
		p.mu.Unlock()
		if gone {
			http.Error(w, `{"error":"the rollout is over"}`, http.StatusGone)
			return
		}
		proxy.ServeHTTP(w, r)
	})
	server := &http.Server{Handler: handler,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequestClientCert}}
	go server.ServeTLS(listener, "", "")
	t.Cleanup(func() { server.Close() })
	return p
}

// certificate is the host's own, once it has one.
func (p *puppet) certificate() (*tls.Certificate, error) {
	p.mu.Lock()
	m := p.machine
	p.mu.Unlock()
	text, err := os.ReadFile(m.path("/var/lib/nixfleet/agent-cert.pem"))
	if err != nil {
		return &tls.Certificate{}, nil
	}
	key, err := pki.ReadPrivateKey(m.path("/etc/ssh/ssh_host_ed25519_key"))
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("no certificate of %s", m.name)
	}
	return &tls.Certificate{Certificate: [][]byte{block.Bytes}, PrivateKey: key.Crypto()}, nil
}

func (p *puppet) pass(r *http.Response) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.rollback == nil && !p.gag || r.Request.URL.Path != "/v1/agent/checkin" || r.StatusCode != http.StatusOK {
		return nil
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return err
	}
	var answer protocol.CheckinResponse
	if err := json.Unmarshal(body, &answer); err != nil {
		return err
	}
	answer.Target, answer.Rollback, answer.NextCheckinSecs = nil, p.rollback, 1 // a nil rollback is none
	if body, err = json.Marshal(answer); err != nil {
		return err
	}
	p.told++
	r.ContentLength = int64(len(body))
	r.Header.Del("Content-Length")
	r.Body = io.NopCloser(bytes.NewReader(body))
	return nil
}

// demands has the host asked to roll back, nil for nothing.
func (p *puppet) demands(r *protocol.Rollback) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rollback, p.told = r, 0
}

func (p *puppet) gagged(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gag = on
}

// heard waits until the host has been asked several times.
func (p *puppet) heard(t *testing.T) {
	t.Helper()
	until(t, "the host is asked to roll back", func() string {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.told < 4 {
			return fmt.Sprintf("told %d times", p.told)
		}
		return ""
	})
}

// A control plane requests a rollback is honoured once, only to what the agent
// recorded, and only for the rollout that is in force (A6).
func playRecall(t *testing.T, g *ground) {
	cp := g.newPuppet(t, g.main)
	through := func(s *system) { s.url = cp.url }
	g.main.forge.policy("channel-recall", "rollback")
	p := newPlayOn(t, g, g.main, "recall", "channel-recall", func(m *machine) {
		cp.mu.Lock()
		defer cp.mu.Unlock()
		cp.machine = m
	}, through)
	one := p.next("one", through)
	p.release(one)
	p.confirmed(one)

	p.begun = time.Now()
	rollout := func() string {
		h, err := p.cp.host(p, p.m.name)
		must(p, err)
		if h.LastRolloutID == nil {
			t.Fatal("the control plane knows no rollout of the host")
		}
		return *h.LastRolloutID
	}
	cp.demands(&protocol.Rollback{Rollout: rollout(), TargetRef: "whatever", Reason: "test"})
	p.back("recalled by the control plane", true)
	p.tell("rollback asked by the control plane", onOld, "")

	p.begun = time.Now()
	cp.heard(t)
	p.settled(all(p.first))
	p.tell("the same rollback asked again and again", onOld+": not one further back", "already back")

	cp.demands(nil)
	two := p.next("two", through)
	p.release(two)
	p.confirmed(two)

	// A newer release is in force, which the host has not been told to take yet.
	cp.gagged(true)
	old := p.intent()
	second := rollout()
	three := p.next("three", through)
	p.release(three)
	until(t, "the host sees the newer release", func() string {
		if p.intent() == old {
			return "its mark is that of the one before"
		}
		return ""
	})
	cp.demands(&protocol.Rollback{Rollout: second, TargetRef: "whatever", Reason: "test"})
	cp.heard(t)
	p.settled(all(two))
	until(t, "the refusal is reported", func() string {
		for _, r := range p.cp.reports(t, p.m.name) {
			if r.Event == protocol.EventOther && strings.Contains(string(r.Details), protocol.KindRollbackRefused) {
				return ""
			}
		}
		return "no report of it"
	})
	p.tell("rollback asked for another rollout than the one in force", "the generation it runs",
		"rollback-refused: what runs here is not of the rollout that the head names")
	cp.demands(nil)
	cp.gagged(false)
	p.confirmed(three)
}

// A generation that the control plane does not take is not the boot default any more.
func playConfirmRefused(t *testing.T, g *ground) {
	cp := g.newPuppet(t, g.main)
	cp.gone = true
	through := func(s *system) { s.url = cp.url }
	p := newPlayOn(t, g, g.main, "confirm-refused", "channel-confirm-refused", func(m *machine) {
		cp.mu.Lock()
		defer cp.mu.Unlock()
		cp.machine = m
	}, through)
	p.release(p.next("next", through))
	p.back("confirm-refused", false)
	p.tell("confirm answered with 410", onOld, "")
}

// intent is that of the newest release that the host has seen.
func (p *play) intent() string {
	p.Helper()
	s, err := p.status()
	must(p, err)
	if s.Mark == nil {
		return ""
	}
	return s.Mark.Intent
}
