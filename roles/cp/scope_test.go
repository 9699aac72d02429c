package cp

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"

	"nixfleet/pki"
	"nixfleet/roles/protocol"
)

// scopedCert is an operator's certificate with a scope.
func (e *estate) scopedCert(cn string, scope *pki.Scope) *tls.Certificate {
	e.t.Helper()
	key := generate(e.t, pki.AlgorithmP256)
	cert, err := e.root.IssueScopedOperator(cn, scope, key.Crypto().Public(), time.Now(), time.Hour)
	if err != nil {
		e.t.Fatal(err)
	}
	return pairOf(e.t, cert, key)
}

// twoChannels is a fleet with a host on each of two channels, both in a rollout.
func twoChannels(t *testing.T) (*estate, *plane, map[string]string) {
	t.Helper()
	e := newEstate(t, "a", "b")
	e.fleet.Channels["edge"] = e.fleet.Channels["stable"]
	e.fleet.Hosts["b"].Channel = "edge"
	e.fleet.Waves = nil
	e.publish()
	p := e.serve()
	for _, host := range []string{"a", "b"} {
		p.checkin(p.agent(host), e.state(host, closureOf(host, 0)), 0)
	}
	ids := map[string]string{}
	for channel, head := range e.heads {
		ids[channel] = head.RolloutID
	}
	return e, p, ids
}

func TestAScopeIsHeldOnEveryRoute(t *testing.T) {
	e, p, ids := twoChannels(t)
	all := p.web(e.operatorCert("operator-all"))
	edge := p.web(e.scopedCert("operator-edge", &pki.Scope{Channels: []string{"ed*"}}))
	reader := p.web(e.scopedCert("operator-reader", &pki.Scope{Verbs: []string{"read"}}))
	hold := protocol.HoldRequest{Reason: "x"}
	for _, c := range []struct {
		method, path      string
		body              any
		all, edge, reader int
	}{
		{"GET", "/v1/whoami", nil, 200, 200, 200},
		{"GET", "/v1/hosts", nil, 200, 200, 200},
		{"GET", "/v1/hosts/b/explain", nil, 200, 200, 200},
		{"GET", "/v1/hosts/a/explain", nil, 200, 403, 200},
		{"GET", "/v1/hosts/none/explain", nil, 404, 404, 404},
		{"GET", "/v1/channels/edge", nil, 200, 200, 200},
		{"GET", "/v1/channels/stable", nil, 200, 403, 200},
		{"GET", "/v1/heads/stable", nil, 200, 403, 200},
		{"GET", "/v1/rollouts/" + ids["edge"], nil, 200, 200, 200},
		{"GET", "/v1/rollouts/" + ids["stable"], nil, 200, 403, 200},
		{"GET", "/v1/audit", nil, 200, 403, 200},
		{"GET", "/v1/revocations", nil, 200, 403, 200},
		{"GET", "/metrics", nil, 200, 403, 200},
		{"POST", "/v1/rollouts/" + ids["edge"] + "/pause", hold, 204, 204, 403},
		{"POST", "/v1/rollouts/" + ids["stable"] + "/pause", hold, 204, 403, 403},
		{"POST", "/v1/hosts/a/retry", hold, 204, 403, 403},
		{"POST", "/v1/poke", nil, 204, 204, 403},
		{"POST", "/v1/revocations/undo", protocol.UnrevokeRequest{Hostname: "none"}, 404, 403, 403},
		{"POST", "/v1/revocations", protocol.RevokeRequest{Hostname: "a"}, 204, 403, 403},
		{"POST", "/v1/revocations", protocol.RevokeRequest{Hostname: "b"}, 204, 204, 403},
		{"POST", "/v1/revocations", protocol.RevokeRequest{Hostname: "operator-x"}, 204, 403, 403},
	} {
		for who, one := range map[string]struct {
			web  *http.Client
			want int
		}{"all": {all, c.all}, "edge": {edge, c.edge}, "reader": {reader, c.reader}} {
			got := p.send(one.web, sent{method: c.method, path: c.path, body: c.body,
				header: map[string]string{"Accept": "application/json"}})
			if got.status != one.want || got.status == 403 && !strings.Contains(got.body, codeScope) {
				t.Errorf("%s %s by %s: %d %s, want %d", c.method, c.path, who, got.status, got.body, one.want)
			}
		}
	}
}

// Lists and the event log show what the scope has, and nothing else.
func TestAScopeIsHeldInListsAndEvents(t *testing.T) {
	e, p, ids := twoChannels(t)
	edge := p.web(e.scopedCert("operator-edge", &pki.Scope{Channels: []string{"edge"}}))
	for _, path := range []string{"/v1/hosts", "/v1/hosts?order=worst", "/v1/channels", "/v1/rollouts?all=true",
		"/v1/events?follow=false", "/v1/history"} {
		got := p.send(edge, sent{method: "GET", path: path})
		if got.status != 200 || strings.Contains(got.body, "stable") || strings.Contains(got.body, ids["stable"]) ||
			!strings.Contains(got.body, "edge") {
			t.Errorf("%s: %d %s", path, got.status, got.body)
		}
	}
}

// The signed fleet takes a scope away without a new certificate.
func TestTheFleetNarrowsAName(t *testing.T) {
	e := newEstate(t, "a")
	e.fleet.OperatorScopes = map[string]*pki.Scope{"operator-jo": {Verbs: []string{"read"}}}
	e.publish()
	p := e.serve()
	poke := func(cn string) int {
		return p.send(p.web(e.operatorCert(cn)), sent{method: "POST", path: "/v1/poke"}).status
	}
	if got := poke("operator-jo"); got != 403 {
		t.Errorf("a name that the fleet narrows: %d, want 403", got)
	}
	if got := poke("operator-eve"); got != 204 {
		t.Errorf("another: %d, want 204", got)
	}
}

// Every route that an operator may call says what a scope must have for it.
func TestEveryRouteHasALimit(t *testing.T) {
	e := newEstate(t, "a")
	s := e.primed(t)
	seen := map[string]bool{}
	for _, rt := range s.handlers.table(s.world.metrics.registry) {
		seen[rt.pattern] = true
		if _, ok := limits[rt.pattern]; !ok && rt.who >= members {
			t.Errorf("%s has no limit", rt.pattern)
		}
	}
	for pattern := range limits {
		if !seen[pattern] && pattern != "GET /v1/openapi.json" {
			t.Errorf("%s is no route", pattern)
		}
	}
}

// A scope that cannot be read is not taken for none.
func TestAScopeThatCannotBeReadIsRefused(t *testing.T) {
	e := newEstate(t, "a")
	p := e.serve()
	good := e.scopedCert("operator-jo", &pki.Scope{Verbs: []string{"read"}})
	leaf, err := x509.ParseCertificate(good.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	id := leaf.Extensions[len(leaf.Extensions)-1].Id
	for name, text := range map[string]string{
		"not JSON": "read", "an unknown member": `{"channels":[],"hours":["9-17"],"verbs":[]}`,
		"an unknown verb": `{"channels":[],"verbs":["fly"]}`, "a bad pattern": `{"channels":["[a"],"verbs":[]}`,
		"not canonical": `{"verbs":[],"channels":[]}`,
	} {
		value, err := asn1.MarshalWithParams(text, "utf8")
		if err != nil {
			t.Fatal(err)
		}
		key := generate(t, pki.AlgorithmP256)
		der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "operator-jo"}, NotBefore: time.Now().Add(-time.Hour),
			NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
			BasicConstraintsValid: true, ExtraExtensions: []pkix.Extension{{Id: id, Value: value}},
		}, e.root.Cert, key.Crypto().Public(), e.root.Signer)
		if err != nil {
			t.Fatal(err)
		}
		cert := &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key.Crypto()}
		if got := p.send(p.web(cert), sent{method: "GET", path: "/v1/hosts"}); got.status != 401 {
			t.Errorf("%s: %d, want 401", name, got.status)
		}
	}
	if _, err := e.root.IssueScopedOperator("jo", &pki.Scope{Verbs: []string{"fly"}}, leaf.PublicKey, time.Now(),
		time.Hour); err == nil {
		t.Error("a certificate with an unknown verb was issued")
	}
}
