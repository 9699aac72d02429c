package cp

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/http/httptest"
	"os"
	"testing"
	"time"

	"nixfleet/pki"
)

// connected is the context of a request on a connection of cert's holder.
func connected(t *testing.T, cert *tls.Certificate) context.Context {
	t.Helper()
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	return context.WithValue(t.Context(), connectionKey,
		&connection{state: &tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}}})
}

// primed is a server that does not listen.
func (e *estate) primed(t *testing.T, change ...func(*Config)) *server {
	t.Helper()
	cfg := e.config()
	for _, c := range change {
		c(&cfg)
	}
	if err := cfg.complete(); err != nil {
		t.Fatal(err)
	}
	s, err := newServer(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.store.Close() })
	s.release.prime(t.Context())
	return s
}

func TestARevocationThatCannotBeLookedUpDenies(t *testing.T) {
	e := newEstate(t, "a")
	s := e.primed(t)
	ctx := connected(t, e.agentCert("a", time.Now().Add(-time.Hour)))
	if id, err := s.door.authorize(ctx); err != nil || id.Name != "a" || id.Role != pki.RoleAgent {
		t.Fatalf("%+v %v", id, err)
	}
	if err := s.store.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := s.door.authorize(ctx)
	w, r := httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, "GET", "/v1/whoami", nil)
	if s.api.refuse(w, r, s.door.shut(r, pki.Identity{}, err)); err == nil || w.Code != 500 || w.Body.Len() > 0 {
		t.Errorf("%v is answered %d %q, want status 500", err, w.Code, w.Body)
	}
}

func TestAChainHoldsUntilTheFirstOfItsCertificatesEnds(t *testing.T) {
	e := newEstate(t, "a")
	s := e.primed(t)
	now := time.Now()
	leaf, err := x509.ParseCertificate(e.certFor("a", e.hostKeys["a"], now, 10*time.Hour).Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	cas, _, err := s.files.clientCAs.get()
	if err != nil {
		t.Fatal(err)
	}
	_, until, err := s.door.verifyChain([]*x509.Certificate{leaf}, cas.pool, now)
	if err != nil || !until.Equal(leaf.NotAfter) {
		t.Errorf("until %s (%v), want %s", until, err, leaf.NotAfter)
	}
	if _, _, err := s.door.verifyChain([]*x509.Certificate{leaf}, cas.pool,
		e.ca.Cert.NotAfter.Add(time.Second)); err == nil {
		t.Error("a chain is accepted after its issuing CA has ended")
	}
}

func TestIdleCheckinsTouchNoDisk(t *testing.T) {
	e := newEstate(t, "a")
	p := e.serve()
	a := p.agent("a")
	idle := func() { p.checkin(a, e.state("a", closureOf("a", 1)), 0) }
	for range 3 {
		idle() // found on its target, converged
	}
	files := []string{"state/state.db", "state/state.db-wal"}
	stat := func() (stamps []string) {
		for _, f := range files {
			info, err := os.Stat(e.path(f))
			if err != nil {
				t.Fatal(err)
			}
			stamps = append(stamps, info.ModTime().String())
		}
		return stamps
	}
	before := stat()
	for range 50 {
		idle()
	}
	for i, after := range stat() {
		if after != before[i] {
			t.Errorf("%s was written", files[i])
		}
	}
}
