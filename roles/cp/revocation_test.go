package cp

import (
	"context"
	"crypto/tls"
	"net/http"
	"os/exec"
	"testing"
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
)

func TestRevocationReachesAnOpenConnection(t *testing.T) {
	e := newEstate(t, "a", "b")
	p := e.serve()
	web := p.web(e.agentCert("a", time.Now().Add(-time.Hour)))
	if got := p.send(web, sent{method: "GET", path: "/v1/whoami"}); got.status != 200 {
		t.Fatalf("whoami: %d", got.status)
	}
	if err := p.operator().Revocations().Add(context.Background(), "a", nil, "stolen"); err != nil {
		t.Fatal(err)
	}
	if got := p.send(web, sent{method: "GET", path: "/v1/whoami"}); got.status != 401 {
		t.Errorf("after the revocation: %d, want 401", got.status)
	}
	p.checkin(p.agent("b"), e.state("b", closureOf("b", 0)), 0)
}

// TestAResumedSessionIsNoWayRoundARevocation: resumption shows no certificate
// again, and what it once showed must be judged as of now.
func TestAResumedSessionIsNoWayRoundARevocation(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			e := newEstate(t, "a")
			p := e.serve()
			web := p.web(e.agentCert("a", time.Now().Add(-time.Hour)))
			transport := web.Transport.(*http.Transport)
			transport.TLSClientConfig.ClientSessionCache = tls.NewLRUClientSessionCache(4)
			transport.TLSClientConfig.MinVersion, transport.TLSClientConfig.MaxVersion = version, version
			transport.DisableKeepAlives = true
			whoami := func(want int, resumed bool) {
				t.Helper()
				resp, err := web.Get(p.url + "/v1/whoami")
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				if resp.StatusCode != want || resp.TLS.DidResume != resumed {
					t.Errorf("%d, resumed %v; want %d, %v", resp.StatusCode, resp.TLS.DidResume, want, resumed)
				}
			}
			whoami(200, false)
			whoami(200, true)
			if err := p.operator().Revocations().Add(context.Background(), "a", nil, "stolen"); err != nil {
				t.Fatal(err)
			}
			whoami(401, true)
		})
	}
}

func TestRevocationByHandReachesAnOpenConnection(t *testing.T) {
	if _, err := exec.LookPath("sqlite3"); err != nil {
		t.Skip("no sqlite3 shell")
	}
	e := newEstate(t, "a")
	p := e.serve()
	web := p.web(e.agentCert("a", time.Now().Add(-time.Hour)))
	if got := p.send(web, sent{method: "GET", path: "/v1/whoami"}); got.status != 200 {
		t.Fatalf("whoami: %d", got.status)
	}
	out, err := exec.Command("sqlite3", e.path("state/state.db"),
		"INSERT INTO cert_revocations (hostname, not_before, reason, revoked_by) VALUES ('a', datetime('now'), "+
			"'compromised', 'jo');").CombinedOutput()
	if err != nil {
		t.Fatalf("sqlite3: %v %s", err, out)
	}
	if got := p.send(web, sent{method: "GET", path: "/v1/whoami"}); got.status != 401 {
		t.Errorf("after the row: %d, want 401", got.status)
	}
}

// TestAHostRevokedByItsCertificatesName: whoever copies the name from a log
// must not believe in vain that the host is out.
func TestAHostRevokedByItsCertificatesName(t *testing.T) {
	e := newEstate(t, "a", "b", "c")
	e.revocations.Revocations = []fleet.Revocation{
		{Hostname: pki.AgentName("a", testSuffix), NotBefore: pki.At(time.Now())}}
	e.publish()
	p := e.serve()
	name := pki.AgentName("b", testSuffix)
	if err := p.operator().Revocations().Add(context.Background(), name, nil, "stolen"); err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]int{"a": 401, "b": 401, "c": 200} {
		if got := p.send(p.web(e.agentCert(host, time.Now().Add(-time.Hour))),
			sent{method: "GET", path: "/v1/whoami"}); got.status != want {
			t.Errorf("%s: %d, want %d", host, got.status, want)
		}
	}
	old := e.enrolment("b", func(c *pki.Claims) { c.IssuedAt = pki.At(time.Now().Add(-time.Hour)) })
	if _, err := p.client(nil).Enroll(context.Background(), old); status(t, err) != 401 {
		t.Errorf("a token of before: %v, want 401", err)
	}
}

func TestASignedRevocationAndItsEndT9(t *testing.T) {
	e := newEstate(t, "a")
	p := e.serve()
	web := p.web(e.agentCert("a", time.Now().Add(-time.Hour)))
	e.revocations.Revocations = []fleet.Revocation{{Hostname: "a", NotBefore: pki.At(time.Now())}}
	e.publish()
	operator := p.operator()
	whoami := func() int { return p.send(web, sent{method: "GET", path: "/v1/whoami"}).status }
	if err := operator.Poke(context.Background()); err != nil {
		t.Fatal(err)
	}
	p.eventually("the signed revocation counts", func() bool { return whoami() == 401 })
	e.revocations.Revocations = []fleet.Revocation{}
	e.publish()
	if err := operator.Poke(context.Background()); err != nil {
		t.Fatal(err)
	}
	p.eventually("a name that left the list is revoked no more", func() bool { return whoami() == 200 })
}

func TestARevokedOperator(t *testing.T) {
	e := newEstate(t, "a")
	p := e.serve()
	web := p.web(e.operatorCert("operator-eve"))
	if err := p.operator().Revocations().Add(context.Background(), "operator-eve", nil, "left"); err != nil {
		t.Fatal(err)
	}
	if got := p.send(web, sent{method: "GET", path: "/v1/hosts"}); got.status != 401 {
		t.Errorf("%d, want 401", got.status)
	}
}

func TestRevokedWhileHeld(t *testing.T) {
	e := newEstate(t, "a", "b")
	p := e.serve()
	b := p.agent("b")
	done := make(chan error, 1)
	go func() {
		_, err := b.Checkin(context.Background(), e.state("b", closureOf("b", 0)), 60*time.Second)
		done <- err
	}()
	time.Sleep(100 * time.Millisecond)
	if err := p.operator().Revocations().Add(context.Background(), "b", nil, "stolen"); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if status(t, err) != 401 {
			t.Errorf("the held request was answered %v, want 401", err)
		}
	case <-time.After(5 * time.Second):
		t.Error("the held request of a revoked host is still open")
	}
}
