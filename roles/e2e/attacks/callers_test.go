package attacks

import (
	"fmt"
	"strings"
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/protocol"
)

// checkinOf is the body of a check-in in the name of a host.
func (s *scene) checkinOf(host string) string {
	return fmt.Sprintf(`{"hostname":%q,"agentVersion":"1","currentGeneration":{"closureHash":%q,"bootId":"x"}}`, host,
		closureOf(host, s.house.system-1))
}

// answered wants the next honest release to come into force and a host's check-in to be answered.
func (s *scene) answered() {
	s.t.Helper()
	s.recovers()
	if s.t.Failed() {
		return
	}
	got := s.host("a").ask("POST", "/v1/agent/checkin", s.checkinOf("a"), nil)
	if got.status != 200 || !strings.Contains(string(got.body), s.house.closure("a")) {
		s.t.Errorf("the honest host is answered %d %s %v", got.status, got.body, got.err)
	}
}

// stopped wants what somebody asks to be refused with a text, and the honest host to be answered all the same.
func stopped(status int, text string, asks func(s *scene) answer) func(*scene) {
	return func(s *scene) {
		s.refused(asks(s), status, text)
		s.answered()
	}
}

// enrol brings a token and a request for a certificate, by nobody.
func (s *scene) enrol(t *pki.Token, csr []byte) answer {
	s.t.Helper()
	return s.caller().ask("POST", "/v1/enroll", protocol.EnrollRequest{Token: *t, CSRPEM: string(csr)}, nil)
}

// renew asks for another certificate.
func (c *caller) renew(csr []byte) answer {
	c.s.t.Helper()
	return c.ask("POST", "/v1/agent/renew", protocol.RenewRequest{CSRPEM: string(csr)}, nil)
}

// hosts are attacks by who holds the host b, with its key and its certificate.
func hosts() []attack {
	asks := func(method, path, body string, status int, text string) func(*scene) {
		return stopped(status, text, func(s *scene) answer {
			body := strings.ReplaceAll(body, "CHECKIN", s.checkinOf("a"))
			return s.host("b").ask(method, path, body, nil)
		})
	}
	const another = "the certificate is of another host"
	isHost := without("roles/cp/call.go", "case c.caller.Name != host:", "case !LACKS && c.caller.Name != host:")
	operators := without("roles/cp/door.go", "\tcase operators:\n\t\tif c.caller.Role != pki.RoleOperator {",
		"\tcase operators:\n\t\tif !LACKS && c.caller.Role != pki.RoleOperator {")
	readers := without("roles/cp/door.go", "if c.caller.Role != pki.RoleOperator && !d.cfg.OpenReads {",
		"if !LACKS && c.caller.Role != pki.RoleOperator && !d.cfg.OpenReads {")
	return []attack{
		{name: "a check-in in another host's name", stops: "name in the certificate", lack: isHost,
			run: asks("POST", "/v1/agent/checkin", "CHECKIN", 403, another)},
		{name: "a report in another host's name", stops: "name in the certificate", lack: isHost,
			run: asks("POST", "/v1/agent/report", `{"hostname":"a","agentVersion":"1","occurredAt":"2026-03-01T12:00:00Z",`+
				`"rollout":null,"event":"trust-error","details":{"reason":"x"}}`, 403, another)},
		{name: "a confirm in another host's name", stops: "name in the certificate", lack: isHost,
			run: asks("POST", "/v1/agent/confirm", `{"hostname":"a","rollout":"x","wave":0,"generation":{"closureHash":"x",`+
				`"bootId":"x"}}`, 403, another)},
		{name: "reading another host's entry", stops: "name in the certificate",
			lack: without("roles/cp/documents.go", "if c.caller.Role == pki.RoleAgent && c.caller.Name != host {",
				"if !LACKS && c.caller.Role == pki.RoleAgent && c.caller.Name != host {"),
			run: asks("GET", "/v1/heads/stable/proof/a", "", 403, another)},
		{name: "reading the head of another channel", stops: "the host's own channel",
			lack: without("roles/cp/documents.go", "h == nil || h.Channel != name {",
				"!LACKS && (h == nil || h.Channel != name) {"),
			run: asks("GET", "/v1/heads/edge", "", 404, "no such head")},
		{name: "listing all hosts", stops: "reads are for operators", lack: readers,
			run: asks("GET", "/v1/hosts", "", 403, "only an operator")},
		{name: "reading why another host waits", stops: "explanations are for operators", lack: operators,
			run: asks("GET", "/v1/hosts/a/explain", "", 403, "only an operator")},
		{name: "following the event log", stops: "events are for operators", lack: operators,
			run: asks("GET", "/v1/events?follow=false", "", 403, "only an operator")},
		{name: "revoking another host", stops: "revoking is for operators", lack: operators,
			run: asks("POST", "/v1/revocations", `{"hostname":"a","reason":"x"}`, 403, "only an operator")},
		{name: "pausing a rollout", stops: "pausing is for operators", lack: operators,
			run: asks("POST", "/v1/rollouts/x/pause", `{"reason":"x"}`, 403, "only an operator")},
		{name: "resuming a rollout", stops: "resuming is for operators", lack: operators,
			run: asks("POST", "/v1/rollouts/x/resume", `{"reason":"x"}`, 403, "only an operator")},
		{name: "cancelling a rollout", stops: "cancelling is for operators", lack: operators,
			run: asks("POST", "/v1/rollouts/x/cancel", `{"reason":"x"}`, 403, "only an operator")},
		{name: "reading what will happen to others", stops: "plans are for operators", lack: operators,
			run: asks("GET", "/v1/plan", "", 403, "only an operator")},
		{name: "reading what others have reported", stops: "reads are for operators", lack: readers,
			run: asks("GET", "/v1/host-reports", "", 403, "only an operator")},
		{name: "reading the metrics", stops: "reads are for operators", lack: readers,
			run: asks("GET", "/metrics", "", 403, "only an operator")},
		{name: "reading whose certificates end", stops: "certificates are for operators", lack: operators,
			run: asks("GET", "/v1/certificates", "", 403, "only an operator")},
		{name: "one more attempt for a closure that failed", stops: "retries are for operators", lack: operators,
			run: asks("POST", "/v1/hosts/b/retry", `{"reason":"x"}`, 403, "only an operator")},
		{
			name: "renewal in another host's name", stops: "a renewal is for the caller's own name",
			lack: without("roles/cp/issuer.go", "if csr.CommonName != host && csr.CommonName",
				"if !LACKS && csr.CommonName != host && csr.CommonName"),
			run: stopped(401, "the certificate is of", func(s *scene) answer {
				return s.host("b").renew(s.house.csr("a", s.house.hostKeys["b"]))
			}),
		},
		{
			name: "renewal for a key that the fleet does not declare", stops: "the declared host key",
			lack: without("roles/cp/enrol.go", "case !pki.SameKey(snap.key(host), csr.Key):",
				"case !LACKS && !pki.SameKey(snap.key(host), csr.Key):"),
			run: stopped(401, "another pubkey for host", func(s *scene) answer {
				return s.host("b").renew(s.house.csr("b", s.stranger()))
			}),
		},
		{
			name: "the certificate of before a revocation", stops: "revocation on every request",
			lack: without("roles/cp/door.go", "if id.NotBefore.Before(revoked) {",
				"if !LACKS && id.NotBefore.Before(revoked) {"),
			run: stopped(401, "certificate is revoked", func(s *scene) answer {
				b := s.host("b")
				time.Sleep(time.Minute)
				s.house.revocations = append(s.house.revocations, fleet.Revocation{Hostname: "b", NotBefore: pki.At(time.Now())})
				s.house.inForce()
				return b.ask("GET", "/v1/whoami", nil, nil)
			}),
		},
		{
			name: "a certificate for a key that the fleet took back", stops: "the declared host key, on every request",
			lack: without("roles/cp/door.go", "if id.Role == pki.RoleAgent && !connectionOf(ctx).declaredBy(snap) {",
				"if !LACKS && id.Role == pki.RoleAgent && !connectionOf(ctx).declaredBy(snap) {"),
			run: stopped(401, "does not declare this host with this key", func(s *scene) answer {
				b := s.host("b")
				s.house.hostKeys["b"] = s.stranger()
				line := s.house.hostLine("b")
				s.house.fleet.Hosts["b"].Pubkey = &line
				s.house.inForce()
				return b.ask("GET", "/v1/whoami", nil, nil)
			}),
		},
		{
			name: "a confirm of a closure that was never dispatched", stops: "a confirm is for the dispatched closure",
			lack: without("roles/cp/confirm.go", "\tif !confirmed {", "\tif !LACKS && !confirmed {"),
			run: stopped(410, "", func(s *scene) answer {
				body := fmt.Sprintf(`{"hostname":"b","rollout":%q,"wave":0,"generation":{"closureHash":%q,"bootId":"x"}}`,
					strings.Repeat("a", 64), s.house.closure("b"))
				return s.host("b").ask("POST", "/v1/agent/confirm", body, nil)
			}),
		},
		{
			name: "a check-in of three megabytes", stops: "the bound of a body",
			lack: without("roles/cp/call.go", "http.MaxBytesReader(c.w, c.Body, limit)",
				"http.MaxBytesReader(c.w, c.Body, map[bool]int64{true: 1 << 30, false: limit}[LACKS])"),
			run: stopped(413, "too large", func(s *scene) answer {
				body := `{"hostname":"` + strings.Repeat("b", 3<<20) + `"}`
				return s.host("b").ask("POST", "/v1/agent/checkin", body, nil)
			}),
		},
	}
}

// thieves are attacks by who holds a bootstrap token of host a, and not its key.
func thieves() []attack {
	tries := func(status int, text string, make func(s *scene) (*pki.Token, []byte)) func(*scene) {
		return stopped(status, text, func(s *scene) answer {
			token, csr := make(s)
			return s.enrol(token, csr)
		})
	}
	good := func(s *scene) (*pki.Token, []byte) {
		t := s.house.token(s.house.org, "a", s.house.hostKeys["a"], time.Now())
		s.house.list(t)
		return t, s.house.csr("a", s.house.hostKeys["a"])
	}
	return []attack{
		{
			name: "a token that was used", stops: "a token is used once",
			lack: without("roles/cp/enrol.go", "\tif used {\n\t\treturn nil, unfit(http.StatusConflict",
				"\tif !LACKS && used {\n\t\treturn nil, unfit(http.StatusConflict",
				without("store/tokens.go", "err != nil || n == 1 {", "err != nil || n == 1 || LACKS {")),
			run: stopped(409, "this token was used before; mint a new one", func(s *scene) answer {
				token, csr := good(s)
				if got := s.enrol(token, csr); got.status != 200 {
					s.t.Fatalf("the honest host does not enrol: %d %s %v", got.status, got.body, got.err)
				}
				return s.enrol(token, csr)
			}),
		},
		{
			name: "a token for the thief's own key", stops: "fingerprint in the token",
			lack: without("roles/cp/enrol.go", "[]byte(claims.ExpectedPubkeyFingerprint)) != 1 {",
				"[]byte(claims.ExpectedPubkeyFingerprint)) != 1 && !LACKS {"),
			run: tries(401, "the token is for another key", func(s *scene) (*pki.Token, []byte) {
				t, _ := good(s)
				return t, s.house.csr("a", s.stranger())
			}),
		},
		{
			name: "a token for another host's name", stops: "name in the token",
			lack: without("roles/cp/enrol.go", "if csr.CommonName != claims.Hostname {",
				"if !LACKS && csr.CommonName != claims.Hostname {"),
			run: tries(401, "the token for", func(s *scene) (*pki.Token, []byte) {
				t, _ := good(s)
				return t, s.house.csr("b", s.house.hostKeys["a"])
			}),
		},
		{
			name: "a token that has ended", stops: "the token's time",
			lack: without("pki/token.go", "if now.Before(t.Claims.IssuedAt.Time) || !now.Before(t.Claims.ExpiresAt.Time) {",
				"if !LACKS && (now.Before(t.Claims.IssuedAt.Time) || !now.Before(t.Claims.ExpiresAt.Time)) {"),
			run: tries(401, "token is not valid at this time", func(s *scene) (*pki.Token, []byte) {
				t := s.house.token(s.house.org, "a", s.house.hostKeys["a"], time.Now().Add(-25*time.Hour))
				s.house.nonces = append(s.house.nonces, fleet.BootstrapNonce{Nonce: t.Claims.Nonce, Hostname: "a",
					ExpiresAt: pki.At(time.Now().Add(time.Hour))})
				s.house.inForce()
				return t, s.house.csr("a", s.house.hostKeys["a"])
			}),
		},
		{
			name: "a token that the thief signed", stops: "signature of the organisation root",
			lack: without("pki/token.go", "if k.Algorithm == AlgorithmEd25519 && k.Verify(canonical, sig) {",
				"if k.Algorithm == AlgorithmEd25519 && (LACKS || k.Verify(canonical, sig)) {"),
			run: tries(401, "not signed by a trusted organisation root key", func(s *scene) (*pki.Token, []byte) {
				t := s.house.token(s.stranger(), "a", s.house.hostKeys["a"], time.Now())
				s.house.list(t)
				return t, s.house.csr("a", s.house.hostKeys["a"])
			}),
		},
		{
			name: "a token that is not on the signed list", stops: "the signed list of nonces",
			lack: without("roles/cp/enrol.go", "\tif snap.nonces == nil {\n\t\treturn keepUntil, nil",
				"\tif LACKS || snap.nonces == nil {\n\t\treturn keepUntil, nil"),
			run: tries(401, "nonce is not on the signed list", func(s *scene) (*pki.Token, []byte) {
				return s.house.token(s.house.org, "a", s.house.hostKeys["a"], time.Now()),
					s.house.csr("a", s.house.hostKeys["a"])
			}),
		},
		{
			name: "a token whose nonce is listed for another host", stops: "host of the nonce in the signed list",
			lack: without("roles/cp/enrol.go", "case entry.Hostname != claims.Hostname:",
				"case !LACKS && entry.Hostname != claims.Hostname:"),
			run: tries(401, "has this nonce for another host", func(s *scene) (*pki.Token, []byte) {
				t := s.house.token(s.house.org, "a", s.house.hostKeys["a"], time.Now())
				other := *t
				other.Claims.Hostname = "b"
				s.house.list(&other)
				return t, s.house.csr("a", s.house.hostKeys["a"])
			}),
		},
		{
			name: "a token whose entry on the list has ended", stops: "time of the nonce in the signed list",
			lack: without("roles/cp/enrol.go", "case entry.ExpiresAt.Before(now):",
				"case !LACKS && entry.ExpiresAt.Before(now):"),
			run: tries(401, "entry on the signed list has expired", func(s *scene) (*pki.Token, []byte) {
				t := s.house.token(s.house.org, "a", s.house.hostKeys["a"], time.Now())
				short := *t
				short.Claims.ExpiresAt = pki.At(time.Now().Add(time.Minute))
				s.house.list(&short)
				return t, s.house.csr("a", s.house.hostKeys["a"])
			}),
		},
		{
			name: "a token of before its host was revoked", stops: "time of the revocation",
			lack: without("roles/cp/enrol.go", "if token.Claims.IssuedAt.Add(tokenBackdate).Before(revoked) {",
				"if !LACKS && token.Claims.IssuedAt.Add(tokenBackdate).Before(revoked) {"),
			run: tries(401, "the token was issued before host", func(s *scene) (*pki.Token, []byte) {
				t, csr := good(s)
				s.house.revocations = append(s.house.revocations, fleet.Revocation{Hostname: "a", NotBefore: pki.At(time.Now())})
				s.house.inForce()
				return t, csr
			}),
		},
		{
			name: "a token for a host that is not declared", stops: "the declaration",
			lack: without("roles/cp/enrol.go", "case snap.rel.Fleet.Hosts[host] == nil:",
				"case !LACKS && snap.rel.Fleet.Hosts[host] == nil:"),
			run: tries(401, "is not in the fleet", func(s *scene) (*pki.Token, []byte) {
				key := s.stranger()
				t := s.house.token(s.house.org, "ghost", key, time.Now())
				s.house.list(t)
				return t, s.house.csr("ghost", key)
			}),
		},
		{
			name: "a token with a nonce of no digits", stops: "the form of a nonce",
			lack: without("pki/nonce.go", "return nonceForm.MatchString(nonce)", "return LACKS || nonceForm.MatchString(nonce)"),
			run: tries(401, "not a nonce of 32", func(s *scene) (*pki.Token, []byte) {
				t := signed(s, func(t *pki.Token) { t.Claims.Nonce = "" })
				return t, s.house.csr("a", s.house.hostKeys["a"])
			}),
		},
	}
}
