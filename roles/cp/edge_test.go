package cp

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/protocol"
)

const checkinPath = "/v1/agent/checkin"

func TestNothingIsServedBeforeAVerifiedRelease(t *testing.T) {
	e := newEstate(t, "a")
	if err := os.RemoveAll(e.release); err != nil {
		t.Fatal(err)
	}
	p := e.serve()
	web := p.web(nil)
	for _, path := range []string{"/v1/hosts", "/metrics", "/nowhere"} {
		got := p.send(web, sent{method: "GET", path: path})
		if got.status != 503 || got.header.Get("Retry-After") != "30" ||
			got.body != `{"error":"control plane not ready","reason":"awaiting first signed artifact"}` {
			t.Errorf("%s: %d %v %s", path, got.status, got.header, got.body)
		}
	}
	if got := p.send(web, sent{method: "POST", path: "/v1/enroll", body: "{}",
		header: map[string]string{protocol.HeaderProtocol: "9"}}); got.status != 503 {
		t.Errorf("readiness is checked first: %d", got.status)
	}
	if got := p.send(web, sent{method: "GET", path: "/healthz",
		header: map[string]string{protocol.HeaderProtocol: "9"}}); got.status != 200 ||
		!strings.HasPrefix(got.body, `{"ok":true,"version":"0.0.1","last_tick_at":`) {
		t.Errorf("healthz: %d %s", got.status, got.body)
	}
}

func TestChecksComeInTheOrderOfTheContract(t *testing.T) {
	e := newEstate(t, "a", "b")
	p := e.serve()
	nobody, agent := p.web(nil), p.web(e.agentCert("a", time.Now().Add(-time.Hour)))
	operator := p.web(e.operatorCert("operator-jo"))
	header := func(value string) map[string]string { return map[string]string{protocol.HeaderProtocol: value} }
	kind := func(value string) map[string]string { return map[string]string{"Content-Type": value} }
	good := `{"hostname":"a","agentVersion":"1","currentGeneration":{"closureHash":"x","bootId":"b"}}`
	for _, c := range []struct {
		name string
		as   *http.Client
		call sent
		want int
	}{
		{"no number, no certificate", nobody, sent{"GET", "/nowhere", nil, header("one")}, 400},
		{"other version, no certificate", nobody, sent{"GET", "/nowhere", nil, header("2")}, 426},
		{"a version beyond any", nobody, sent{"GET", "/nowhere", nil, header("18446744073709551617")}, 426},
		{"no certificate before an unknown path", nobody, sent{"GET", "/nowhere", nil, nil}, 401},
		{"no certificate before a wrong method", nobody, sent{"DELETE", checkinPath, nil, nil}, 401},
		{"unknown path", agent, sent{"GET", "/nowhere", nil, nil}, 404},
		{"a path that is written in another way", agent, sent{"GET", "//v1/whoami", nil, nil}, 404},
		{"a path with a slash too many", agent, sent{"GET", "/v1/whoami/", nil, nil}, 404},
		{"wrong method", agent, sent{"GET", checkinPath, nil, nil}, 405},
		{"wrong method on a token path", nobody, sent{"GET", "/v1/enroll", nil, nil}, 405},
		{"no header", agent, sent{"POST", checkinPath, good, header("")}, 200},
		{"content type first", agent, sent{"POST", checkinPath, "{", kind("text/plain")}, 415},
		{"no content type", agent, sent{"POST", checkinPath, good, kind("")}, 415},
		{"a +json type", agent, sent{"POST", checkinPath, good, kind("application/x+json; charset=utf-8")}, 200},
		{"size before syntax", agent, sent{"POST", checkinPath, strings.Repeat("{", protocol.MaxBody+1), nil}, 413},
		{"the largest body", agent, sent{"POST", checkinPath, good + strings.Repeat(" ", protocol.MaxBody-len(good)), nil},
			200},
		{"syntax", agent, sent{"POST", checkinPath, good[:40], nil}, 400},
		{"empty", agent, sent{"POST", checkinPath, "", nil}, 400},
		{"shape", agent, sent{"POST", checkinPath, `{"hostname":"a"}`, nil}, 422},
		{"another kind of value", agent, sent{"POST", checkinPath, strings.Replace(good, `"a"`, `1`, 1), nil}, 422},
		{"a repeated known key", agent, sent{"POST", checkinPath, `{"hostname":"b",` + good[1:], nil}, 422},
		{"a repeated unknown key", agent, sent{"POST", checkinPath, `{"new":1,"new":2,` + good[1:], nil}, 200},
		{"another host's name", agent, sent{"POST", checkinPath, strings.Replace(good, `"a"`, `"b"`, 1), nil}, 403},
		{"an operator is not a host", operator, sent{"POST", checkinPath, good, nil}, 403},
	} {
		if got := p.send(c.as, c.call); got.status != c.want {
			t.Errorf("%s: %d, want %d: %s", c.name, got.status, c.want, got.body)
		}
	}
}

// TestAStatusHasNoBodyUnlessItIsAskedFor: v1 peers get what v1 sends them, ours are told why.
func TestAStatusHasNoBodyUnlessItIsAskedFor(t *testing.T) {
	e := newEstate(t, "a", "b")
	p := e.serve()
	nobody, agent, operator := p.web(nil), p.web(e.agentCert("a", time.Now().Add(-time.Hour))), p.web(e.operatorCert("jo"))
	for _, c := range []struct {
		name string
		as   *http.Client
		call sent
		want int
		told bool // why, when JSON is asked for
	}{
		{"no certificate", nobody, sent{"GET", "/v1/hosts", nil, nil}, 401, true},
		{"another host", agent, sent{"POST", checkinPath, e.state("b", "x"), nil}, 403, true},
		{"used token", nobody, sent{"POST", "/v1/enroll", e.enrolment("a", func(c *pki.Claims) { c.ExpiresAt = c.IssuedAt }),
			nil}, 401, true},
		{"no such path", agent, sent{"GET", "/nowhere", nil, nil}, 404, false},
		{"no such method", agent, sent{"GET", checkinPath, nil, nil}, 405, false},
		{"no such manifest", operator, sent{"GET", "/v1/rollouts/x", nil, nil}, 404, true},
		{"no such channel", operator, sent{"GET", "/v1/channels/x", nil, nil}, 404, true},
		{"bad limit", operator, sent{"GET", "/v1/host-reports?limit=x", nil, nil}, 400, false},
	} {
		for accept, wanted := range map[string]bool{"": false, "*/*": false, "text/html, application/json;q=0.5": c.told} {
			c.call.header = map[string]string{"Accept": accept}
			got := p.send(c.as, c.call)
			if got.status != c.want || (got.body != "") != wanted || wanted && !strings.Contains(got.body, `"error":"`) {
				t.Errorf("%s, accepting %q: %d %q, want %d", c.name, accept, got.status, got.body, c.want)
			}
		}
	}
}

func TestOptionsOfEverythingIsNoWayRoundTheChecks(t *testing.T) {
	e := newEstate(t, "a")
	p := e.serve()
	roots := x509.NewCertPool()
	roots.AddCert(e.root.Cert)
	conn, err := tls.Dial("tcp", strings.TrimPrefix(p.url, "https://"), &tls.Config{RootCAs: roots})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 401 ") {
		t.Errorf("%q %v", answer, err)
	}
}

func TestStrictModeWantsTheHeaderOnPostOnly(t *testing.T) {
	e := newEstate(t, "a")
	e.nonces = &fleet.BootstrapNonces{SchemaVersion: 1, BootstrapNonces: []fleet.BootstrapNonce{},
		Meta: fleet.Meta{SchemaVersion: 1}}
	e.publish()
	p := e.serve(func(c *Config) { c.Strict = true })
	web := p.web(e.agentCert("a", time.Now().Add(-time.Hour)))
	none := map[string]string{protocol.HeaderProtocol: ""}
	if got := p.send(web, sent{"POST", checkinPath, "{}", none}); got.status != 400 {
		t.Errorf("POST without header: %d, want 400", got.status)
	}
	if got := p.send(web, sent{"GET", "/v1/rollouts/" + e.rolloutID(), nil, none}); got.status != 200 {
		t.Errorf("GET of a manifest without header: %d, want 200", got.status)
	}
}

func TestNamesThatAreNotTheirHoldersT3(t *testing.T) {
	e := newEstate(t, "a", "b")
	p := e.serve()
	now := time.Now()
	for name, cert := range map[string]*tls.Certificate{
		"an operator named like a host":            e.operatorCert("a"),
		"an operator with a host's canonical name": e.operatorCert(pki.AgentName("a", testSuffix)),
		"another key with a host's name":           e.certFor("a", generate(t, pki.AlgorithmEd25519), now, time.Hour),
		"a host that is not declared":              e.certFor("c", generate(t, pki.AlgorithmEd25519), now, time.Hour),
		"another host's key with this host's name": e.certFor("a", e.hostKeys["b"], now, time.Hour),
		"another host":                             e.certFor("b", e.hostKeys["b"], now, time.Hour),
	} {
		got := p.send(p.web(cert), sent{method: "POST", path: checkinPath, body: e.state("a", closureOf("a", 0))})
		if got.status != 401 && got.status != 403 || strings.Contains(got.body, "target") {
			t.Errorf("%s: %d %s", name, got.status, got.body)
		}
	}
}

func TestCertificatesThatFailTheHandshake(t *testing.T) {
	e := newEstate(t, "a")
	p := e.serve()
	stranger, _, err := pki.NewFleetRoot("fleet root", time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	key := generate(t, pki.AlgorithmP256)
	text, err := stranger.IssueOperator("operator-jo", key.Crypto().Public(), time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	serverUse, err := e.root.IssueServer([]string{"operator-jo"}, key.Crypto().Public(), time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "operator-jo"},
		NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour)}
	self, err := x509.CreateCertificate(nil, template, template, key.Crypto().Public(), key.Crypto())
	if err != nil {
		t.Fatal(err)
	}
	for name, cert := range map[string]*tls.Certificate{
		"another fleet's root": pairOf(t, text, key),
		"expired":              e.certFor("a", e.hostKeys["a"], time.Now().Add(-2*time.Hour), time.Hour),
		"for servers only":     pairOf(t, serverUse, key),
		"signed by itself":     {Certificate: [][]byte{self}, PrivateKey: key.Crypto()},
		"garbage":              {Certificate: [][]byte{[]byte("garbage")}, PrivateKey: key.Crypto()},
	} {
		req, err := http.NewRequest("GET", p.url+"/healthz", nil)
		if err != nil {
			t.Fatal(err)
		}
		if resp, err := p.web(cert).Do(req); err == nil {
			resp.Body.Close()
			t.Errorf("%s: answered %s", name, resp.Status)
		}
	}
}

func TestAnExpiredCertificateIsRefusedOnAnOpenConnection(t *testing.T) {
	e := newEstate(t, "a")
	p := e.serve()
	web := p.web(e.certFor("a", e.hostKeys["a"], time.Now().Add(-time.Hour), time.Hour+2*time.Second))
	if got := p.send(web, sent{method: "GET", path: "/v1/whoami"}); got.status != 200 {
		t.Fatalf("whoami: %d", got.status)
	}
	time.Sleep(2100 * time.Millisecond)
	if got := p.send(web, sent{method: "GET", path: "/v1/whoami"}); got.status != 401 {
		t.Errorf("an expired certificate on an open connection: %d", got.status)
	}
}

func TestTheServerOffersNoHTTP2AndNoOldTLS(t *testing.T) {
	e := newEstate(t, "a")
	p := e.serve()
	roots := x509.NewCertPool()
	roots.AddCert(e.root.Cert)
	addr := strings.TrimPrefix(p.url, "https://")
	conn, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: roots, NextProtos: []string{"h2", "http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	if got := conn.ConnectionState().NegotiatedProtocol; got != "" {
		t.Errorf("negotiated %q", got)
	}
	conn.Close()
	if conn, err := tls.Dial("tcp", addr,
		&tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}); err == nil {
		conn.Close()
		t.Error("TLS 1.1 was accepted")
	}
}

func TestWithoutClientCAEveryMTLSPathAnswers401(t *testing.T) {
	e := newEstate(t, "a")
	p := e.serve(func(c *Config) { c.ClientCA = "" })
	if got := p.send(p.web(e.operatorCert("operator-jo")), sent{method: "GET", path: "/v1/whoami"}); got.status != 401 {
		t.Errorf("%d, want 401", got.status)
	}
}

func TestChangedFilesAreUsedWithoutARestart(t *testing.T) {
	e := newEstate(t, "a")
	p := e.serve()
	web := p.web(e.operatorCert("operator-jo"))
	if got := p.send(web, sent{method: "GET", path: "/v1/whoami"}); got.status != 200 {
		t.Fatalf("whoami: %d", got.status)
	}
	// The root leaves the bundle: operators are out, on open connections too.
	e.write("client-ca.pem", certPEM(e.ca.Cert))
	p.eventually("the new bundle is in force", func() bool {
		return p.send(web, sent{method: "GET", path: "/v1/whoami"}).status == 401
	})
	// A file that is half written leaves the last good one in force.
	e.write("client-ca.pem", []byte("-----BEGIN CERT"))
	agent := p.web(e.agentCert("a", time.Now().Add(-time.Hour)))
	if got := p.send(agent, sent{method: "GET", path: "/v1/whoami"}); got.status != 200 {
		t.Errorf("after a broken bundle: %d", got.status)
	}
	key := generate(t, pki.AlgorithmP256)
	cert, err := e.root.IssueServer([]string{"127.0.0.1"}, key.Crypto().Public(), time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	e.write("server.pem", cert)
	e.write("server.key", keyPEM(t, key))
	p.eventually("the new server certificate is shown", func() bool {
		roots := x509.NewCertPool()
		roots.AddCert(e.root.Cert)
		conn, err := tls.Dial("tcp", strings.TrimPrefix(p.url, "https://"), &tls.Config{RootCAs: roots})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return key.Crypto().Public().(*ecdsa.PublicKey).Equal(conn.ConnectionState().PeerCertificates[0].PublicKey)
	})
}

func TestReadsAreForOperators(t *testing.T) {
	e := newEstate(t, "a", "b")
	paths := []string{"/v1/hosts", "/v1/channels/stable", "/v1/deferrals", "/v1/host-reports", "/v1/rollouts", "/metrics",
		"/v1/rollouts/" + e.rolloutID() + "/lifecycle"}
	p := e.serve()
	agent, operator := p.web(e.agentCert("a", time.Now().Add(-time.Hour))), p.web(e.operatorCert("operator-jo"))
	for _, path := range paths {
		if got := p.send(agent, sent{method: "GET", path: path}); got.status != 403 {
			t.Errorf("%s for an agent: %d, want 403", path, got.status)
		}
		if got := p.send(operator, sent{method: "GET", path: path}); got.status != 200 {
			t.Errorf("%s for an operator: %d %s", path, got.status, got.body)
		}
	}
	for _, path := range []string{"/v1/hosts/a/explain", "/v1/plan"} {
		if got := p.send(operator, sent{method: "GET", path: path}); got.status != 200 {
			t.Errorf("%s for an operator: %d %s", path, got.status, got.body)
		}
		if got := p.send(agent, sent{method: "GET", path: path}); got.status != 403 {
			t.Errorf("%s for an agent: %d, want 403", path, got.status)
		}
	}
	for _, path := range []string{"/v1/poke", "/v1/hosts/a/retry", "/v1/revocations",
		"/v1/rollouts/" + e.rolloutID() + "/pause"} {
		if got := p.send(agent, sent{method: "POST", path: path, body: `{"hostname":"b"}`}); got.status != 403 {
			t.Errorf("%s for an agent: %d, want 403", path, got.status)
		}
	}
	p.stop()
	open := e.serve(func(c *Config) { c.OpenReads = true })
	agent = open.web(e.agentCert("a", time.Now().Add(-time.Hour)))
	for _, path := range paths {
		if got := open.send(agent, sent{method: "GET", path: path}); got.status != 200 {
			t.Errorf("%s for an agent with open reads: %d", path, got.status)
		}
	}
}

func TestConnectionsWithoutCertificateAreBounded(t *testing.T) {
	e := newEstate(t, "a")
	p := e.serve(func(c *Config) { c.MaxAnonymous = 2 })
	roots := x509.NewCertPool()
	roots.AddCert(e.root.Cert)
	// Which of them get a place is not said: the server ends handshakes in any order.
	const dialled, places = 5, 2
	var open []*tls.Conn
	var closed atomic.Int32
	for range dialled {
		conn, err := tls.Dial("tcp", strings.TrimPrefix(p.url, "https://"), &tls.Config{RootCAs: roots})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		open = append(open, conn)
		go func() {
			if _, err := conn.Read(make([]byte, 1)); err == io.EOF {
				closed.Add(1)
			}
		}()
	}
	p.eventually("no more than two are left open", func() bool { return closed.Load() >= dialled-places })
	// Those with a certificate are not concerned.
	p.checkin(p.agent("a"), e.state("a", closureOf("a", 0)), 0)
	for _, conn := range open {
		conn.Close()
	}
	p.eventually("a place is free again", func() bool {
		resp, err := p.web(nil).Get(p.url + "/healthz")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == 200 && resp.Close
	})
}

func TestConnectionsOfOneKeyAreBounded(t *testing.T) {
	e := newEstate(t, "a", "b")
	p := e.serve()
	roots := x509.NewCertPool()
	roots.AddCert(e.root.Cert)
	cert := e.agentCert("a", time.Now().Add(-time.Hour))
	var open []*tls.Conn
	var closed atomic.Int32
	for range maxPerKey + 3 {
		conn, err := tls.Dial("tcp", strings.TrimPrefix(p.url, "https://"),
			&tls.Config{RootCAs: roots, Certificates: []tls.Certificate{*cert}})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		open = append(open, conn)
		go func() {
			if _, err := conn.Read(make([]byte, 1)); err == io.EOF {
				closed.Add(1)
			}
		}()
	}
	p.eventually("those beyond the bound are closed", func() bool { return closed.Load() == 3 })
	// Another host is not concerned.
	p.checkin(p.agent("b"), e.state("b", closureOf("b", 0)), 0)
	for _, conn := range open {
		conn.Close()
	}
	p.eventually("there is room again", func() bool {
		resp, err := p.web(cert).Get(p.url + "/v1/whoami")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == 200
	})
}

func TestHandshakesThatStallAreBounded(t *testing.T) {
	e := newEstate(t, "a")
	p := e.serve(func(c *Config) { c.MaxHandshakes = 3 })
	for range 2 {
		raw, err := net.Dial("tcp", strings.TrimPrefix(p.url, "https://"))
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
	}
	p.checkin(p.agent("a"), e.state("a", closureOf("a", 0)), 0)
}
