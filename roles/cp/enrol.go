package cp

import (
	"crypto/subtle"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet/pki"
	"nixfleet/roles/protocol"
	"nixfleet/store"
)

// loadCA reads the issuing CA. The TPM's wins over the key file.
func (c *Config) loadCA() (*pki.CA, error) {
	if c.FleetCACert == "" || c.FleetCAKey == "" && c.TPMWrapper == "" {
		return nil, nil
	}
	cert, err := os.ReadFile(c.FleetCACert)
	if err != nil {
		return nil, fmt.Errorf("issuing CA: %w", err)
	}
	if c.TPMWrapper != "" {
		public, err := os.ReadFile(c.TPMPubkey)
		if err != nil {
			return nil, fmt.Errorf("issuing CA: %w", err)
		}
		signer, err := pki.NewTPMSigner(public, c.TPMWrapper)
		if err != nil {
			return nil, err
		}
		return pki.WithSigner(cert, signer)
	}
	key, err := os.ReadFile(c.FleetCAKey)
	if err != nil {
		return nil, fmt.Errorf("issuing CA: %w", err)
	}
	return pki.LoadCA(cert, key)
}

// refusedEnrolment is a refusal with its status; the reason goes to the log
// and, being no secret of ours, to the host.
func refusedEnrolment(status int, format string, args ...any) error {
	return &statusError{status, fmt.Errorf(format, args...)}
}

func (s *server) answerEnrolment(w http.ResponseWriter, r *http.Request, what, host string, err error) {
	status := http.StatusInternalServerError
	if coded := (*statusError)(nil); errors.As(err, &coded) {
		status = coded.status
	}
	s.metrics.enrolments.WithLabelValues("refused").Inc()
	s.log.Warn().Str("host", host).Int("status", status).Str("reason", err.Error()).Msg(what + " refused")
	text := err.Error()
	if status == http.StatusInternalServerError {
		text = "the control plane cannot issue certificates; see its log"
	}
	writeRefusal(w, r, status, "enrolment-refused", text)
}

func (s *server) enroll(w http.ResponseWriter, r *http.Request) {
	var req protocol.EnrollRequest
	if !readJSON(w, r, &req) {
		return
	}
	claims := req.Token.Claims
	out, err := s.admit(r, &req)
	if err != nil {
		s.answerEnrolment(w, r, "enrolment", claims.Hostname, err)
		return
	}
	s.metrics.enrolments.WithLabelValues("enrolled").Inc()
	s.log.Info().Str("host", claims.Hostname).Time("not_after", out.NotAfter.Time).Msg("host enrolled")
	writeJSON(w, http.StatusOK, out)
}

// admit runs the checks of an enrolment in the contract's order, except that the
// certificate is signed before the token is used up.
func (s *server) admit(r *http.Request, req *protocol.EnrollRequest) (*protocol.CertResponse, error) {
	ctx, now, token := r.Context(), time.Now(), &req.Token
	claims := token.Claims
	if s.store == nil {
		return nil, refusedEnrolment(http.StatusServiceUnavailable, "no database: a used token could not be remembered")
	}
	used, err := s.store.TokenUsed(ctx, claims.Nonce)
	if err != nil {
		return nil, err
	}
	if used {
		return nil, refusedEnrolment(http.StatusConflict, "this token was used before; mint a new one")
	}
	snap := s.snapshot.Load()
	keepUntil, err := snap.listed(token, now)
	if err != nil {
		return nil, err
	}
	if err := s.verifyToken(token, now); err != nil {
		return nil, err
	}
	csr, err := pki.ParseCSR([]byte(req.CSRPEM))
	if err != nil {
		return nil, refusedEnrolment(http.StatusBadRequest, "%w", err)
	}
	if csr.CommonName != claims.Hostname {
		return nil, refusedEnrolment(http.StatusUnauthorized, "the request is for %q, the token for %q", csr.CommonName, claims.Hostname)
	}
	if subtle.ConstantTimeCompare([]byte(fingerprint(csr)), []byte(claims.ExpectedPubkeyFingerprint)) != 1 {
		return nil, refusedEnrolment(http.StatusUnauthorized, "the token is for another key")
	}
	if err := snap.declares(csr, claims.Hostname); err != nil {
		return nil, err
	}
	if err := s.notRevokedSince(r, snap, token); err != nil {
		return nil, err
	}
	ca, err := s.issuingCA()
	if err != nil {
		return nil, err
	}
	// A certificate that cannot be signed must not cost the host its token.
	issued, err := s.sign(ca, csr, claims.Hostname)
	if err != nil {
		return nil, err
	}
	if err := s.store.UseToken(ctx, claims.Nonce, claims.Hostname, keepUntil); err != nil {
		if errors.Is(err, store.ErrTokenUsed) {
			return nil, refusedEnrolment(http.StatusConflict, "this token was used before; mint a new one")
		}
		return nil, err
	}
	return s.issue(issued, "<enroll>", "enroll/nonce:"+claims.Nonce), nil
}

// listed wants the token on the signed list, where the release has one, and
// gives the time until which its nonce must be remembered.
func (snap *snapshot) listed(token *pki.Token, now time.Time) (keepUntil time.Time, err error) {
	claims := token.Claims
	keepUntil = claims.ExpiresAt.Time
	if snap.nonces == nil {
		return keepUntil, nil
	}
	entry, ok := snap.nonces[claims.Nonce]
	switch {
	case !ok:
		return keepUntil, refusedEnrolment(http.StatusUnauthorized, "the token's nonce is not on the signed list; add it to bootstrapNonces and release")
	case entry.Hostname != claims.Hostname:
		return keepUntil, refusedEnrolment(http.StatusUnauthorized, "the signed list has this nonce for another host")
	case entry.ExpiresAt.Before(now):
		return keepUntil, refusedEnrolment(http.StatusUnauthorized, "the nonce's entry on the signed list has expired")
	}
	if entry.ExpiresAt.After(keepUntil) {
		keepUntil = entry.ExpiresAt.Time
	}
	return keepUntil, nil
}

func (s *server) verifyToken(token *pki.Token, now time.Time) error {
	if err := token.VerifyTime(now); err != nil {
		return refusedEnrolment(http.StatusUnauthorized, "%w", err)
	}
	trust, _, err := s.trust.get()
	if err != nil {
		// The last good one may hold a key that was taken out since.
		return err
	}
	err = token.VerifySignature(trust.OrgRootKey, now)
	if errors.Is(err, pki.ErrTokenSignature) {
		return refusedEnrolment(http.StatusUnauthorized, "%w", err)
	}
	return err
}

// declares wants the request's key to be the one the signed fleet has for the host.
func (snap *snapshot) declares(csr *pki.CSR, host string) error {
	switch {
	case snap.rel.Fleet.Hosts[host] == nil:
		return refusedEnrolment(http.StatusUnauthorized, "host %q is not in the fleet", host)
	case csr.Key == nil:
		return refusedEnrolment(http.StatusBadRequest, "%w", pki.ErrCSRKey)
	case !pki.SameKey(snap.key(host), csr.Key):
		return refusedEnrolment(http.StatusUnauthorized, "the fleet declares no or another pubkey for %q", host)
	}
	return nil
}

// fingerprint is that of the request's key, of whatever kind the key is: base64
// of the SHA-256 of its raw bytes.
func fingerprint(csr *pki.CSR) string {
	var spki struct {
		Algorithm asn1.RawValue
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(csr.Raw.RawSubjectPublicKeyInfo, &spki); err != nil {
		return ""
	}
	return pki.Fingerprint(spki.Key.Bytes)
}

// tokenBackdate is how much earlier than it was minted a token says that it was
// issued: minting tools back-date by a minute, since v1 allows no clock skew,
// and write whole seconds.
const tokenBackdate = 61 * time.Second

// notRevokedSince refuses a token that was minted before its host's revocation.
// A certificate's own time is in whole seconds: one of the second in which its
// host was revoked would be born revoked, so that second is waited for.
func (s *server) notRevokedSince(r *http.Request, snap *snapshot, token *pki.Token) error {
	host := token.Claims.Hostname
	revoked, err := s.revokedSince(r.Context(), snap, host)
	if err != nil || revoked.IsZero() {
		return err
	}
	if token.Claims.IssuedAt.Add(tokenBackdate).Before(revoked) {
		return refusedEnrolment(http.StatusUnauthorized, "the token was issued before host %q was revoked; mint a new one", host)
	}
	now := time.Now()
	if !now.Truncate(time.Second).Before(revoked) {
		return nil
	}
	if revoked.Sub(now) > time.Second {
		return refusedEnrolment(http.StatusUnauthorized, "host %q is revoked until %s", host, pki.At(revoked))
	}
	timer := time.NewTimer(time.Until(now.Truncate(time.Second).Add(2 * time.Second)))
	defer timer.Stop()
	select {
	case <-r.Context().Done():
		return r.Context().Err()
	case <-timer.C:
		return nil
	}
}

// issuingCA is the signer of agents' certificates.
func (s *server) issuingCA() (*pki.CA, error) {
	ca, _, err := s.ca.get()
	if ca == nil {
		return nil, errors.Join(errors.New("no issuing CA is configured"), err)
	}
	if now := time.Now(); now.After(ca.Cert.NotAfter) {
		return nil, fmt.Errorf("the issuing CA's certificate ended at %s", pki.At(ca.Cert.NotAfter))
	}
	return ca, nil
}

// signed is a certificate that nobody has yet.
type signed struct {
	text []byte
	cert *x509.Certificate
	at   time.Time
}

func (s *server) sign(ca *pki.CA, csr *pki.CSR, host string) (*signed, error) {
	now := time.Now()
	text, cert, err := ca.IssueAgent(csr, host, s.cfg.AgentSuffix, now, s.cfg.AgentValidity)
	if err != nil {
		return nil, refusedEnrolment(http.StatusBadRequest, "%w", err)
	}
	return &signed{text, cert, now}, nil
}

// issue records a certificate and gives it out.
func (s *server) issue(c *signed, requester, context string) *protocol.CertResponse {
	s.audit(auditLine{
		At: pki.At(c.at), Requester: requester, Issued: c.cert.Subject.CommonName, NotAfter: pki.At(c.cert.NotAfter),
		Validity: int64(s.cfg.AgentValidity / time.Second), Context: context,
	})
	return &protocol.CertResponse{CertPEM: string(c.text), NotAfter: pki.At(c.cert.NotAfter)}
}

// auditLine is one line of the issuance log.
type auditLine struct {
	At        pki.Timestamp `json:"at"`
	Requester string        `json:"requester_cn"`
	Issued    string        `json:"issued_cn"`
	NotAfter  pki.Timestamp `json:"not_after"`
	Validity  int64         `json:"validity_secs"`
	Context   string        `json:"context"`
}

// audit appends to the issuance log, best effort: a full disk must not lock a
// host out of its renewal.
func (s *server) audit(line auditLine) {
	doc, err := json.Marshal(line)
	if err != nil {
		s.log.Error().Err(err).Msg("issuance not logged")
		return
	}
	s.auditMu.Lock()
	defer s.auditMu.Unlock()
	f, err := os.OpenFile(s.cfg.AuditLog, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err == nil {
		_, err = f.Write(append(doc, '\n'))
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		s.log.Error().Err(err).Msg("issuance not logged")
	}
}

// renew takes the name from the caller's certificate, never from the request.
func (s *server) renew(w http.ResponseWriter, r *http.Request) {
	var req protocol.RenewRequest
	if !readJSON(w, r, &req) {
		return
	}
	id := caller(r)
	host := id.Name
	out, err := s.renewed(id, &req)
	if err != nil {
		s.answerEnrolment(w, r, "renewal", host, err)
		return
	}
	s.metrics.enrolments.WithLabelValues("renewed").Inc()
	s.log.Info().Str("host", host).Time("not_after", out.NotAfter.Time).Msg("certificate renewed")
	writeJSON(w, http.StatusOK, out)
}

func (s *server) renewed(id pki.Identity, req *protocol.RenewRequest) (*protocol.CertResponse, error) {
	csr, err := pki.ParseCSR([]byte(req.CSRPEM))
	if err != nil {
		return nil, refusedEnrolment(http.StatusBadRequest, "%w", err)
	}
	if csr.Key == nil {
		return nil, refusedEnrolment(http.StatusBadRequest, "%w", pki.ErrCSRKey)
	}
	host := id.Name
	if id.Role != pki.RoleAgent {
		return nil, refusedEnrolment(http.StatusUnauthorized, "%q is no host", host)
	}
	if csr.CommonName != host && csr.CommonName != pki.AgentName(host, s.cfg.AgentSuffix) {
		return nil, refusedEnrolment(http.StatusUnauthorized, "the request is for %q, the certificate is of %q", csr.CommonName, host)
	}
	if err := s.snapshot.Load().declares(csr, host); err != nil {
		return nil, err
	}
	ca, err := s.issuingCA()
	if err != nil {
		return nil, err
	}
	issued, err := s.sign(ca, csr, host)
	if err != nil {
		return nil, err
	}
	return s.issue(issued, id.CommonName, "renew/prev:<unknown>"), nil
}

// bootstrapReport stores what a host without a certificate has to say, for a
// token that could still enrol it.
func (s *server) bootstrapReport(w http.ResponseWriter, r *http.Request) {
	var req protocol.BootstrapReport
	if !readJSON(w, r, &req) {
		return
	}
	host, now := req.Token.Claims.Hostname, time.Now()
	if err := s.mayReport(r, &req, now); err != nil {
		s.answerEnrolment(w, r, "bootstrap report", host, err)
		return
	}
	if !s.reportRate.take(host, now) {
		s.tooMany(w, r, "bootstrap-reports", host, "too many reports of this host; it should enrol")
		return
	}
	row, err := reportRow(host, nil, req.Event.Event, req.Event.Details)
	if err == nil && s.store != nil {
		err = s.store.AddReport(r.Context(), row)
	}
	if err != nil {
		s.answerFailure(w, r, err)
		return
	}
	s.log.Warn().Str("host", host).Str("event", req.Event.Event).Msg("bootstrap report received")
	w.WriteHeader(http.StatusNoContent)
}

func (s *server) mayReport(r *http.Request, req *protocol.BootstrapReport, now time.Time) error {
	if err := s.verifyToken(&req.Token, now); err != nil {
		return err
	}
	event := req.Event.Event
	if _, err := protocol.ParseDetails(event, req.Event.Details); err != nil {
		return refusedEnrolment(http.StatusBadRequest, "%w", err)
	}
	if event != protocol.EventTrustError && event != protocol.EventEnrollmentFailed {
		return refusedEnrolment(http.StatusUnprocessableEntity, "event %s needs a certificate", event)
	}
	snap := s.snapshot.Load()
	if _, err := snap.listed(&req.Token, now); err != nil {
		return err
	}
	if snap.rel.Fleet.Hosts[req.Token.Claims.Hostname] == nil {
		return refusedEnrolment(http.StatusUnauthorized, "host %q is not in the fleet", req.Token.Claims.Hostname)
	}
	if s.store == nil {
		return nil
	}
	used, err := s.store.TokenUsed(r.Context(), req.Token.Claims.Nonce)
	if err == nil && used {
		err = refusedEnrolment(http.StatusUnauthorized, "this token was used before")
	}
	return err
}
