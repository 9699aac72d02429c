package cp

import (
	"context"
	"crypto/subtle"
	"encoding/asn1"
	"errors"
	"net/http"
	"time"

	"nixfleet/pki"
	"nixfleet/roles/protocol"
	"nixfleet/store"
)

// unfit refuses a request for a certificate; the reason goes to the log and,
// being no secret of ours, to the host.
func unfit(status int, format string, args ...any) error {
	return refused(status, "enrolment-refused", format, args...)
}

// refuse counts and logs what was refused. A failure of ours is told without its
// reason.
func (i *issuer) refuse(what, host string, err error) error {
	refusal := (*Refusal)(nil)
	if !errors.As(err, &refusal) {
		refusal = refused(http.StatusInternalServerError, "enrolment-refused",
			"the control plane cannot issue certificates; see its log")
	}
	i.metrics.enrolments.WithLabelValues("refused").Inc()
	i.log.Warn().Str("host", host).Int("status", refusal.Status).Str("reason", err.Error()).Msg(what + " refused")
	return refusal
}

func (i *issuer) enroll(c *call) (any, error) {
	var req protocol.EnrollRequest
	if err := c.read(&req); err != nil {
		return nil, err
	}
	host := req.Token.Claims.Hostname
	out, err := i.admit(c.Context(), &req)
	if err != nil {
		return nil, i.refuse("enrolment", host, err)
	}
	i.metrics.enrolments.WithLabelValues("enrolled").Inc()
	i.log.Info().Str("host", host).Time("not_after", out.NotAfter.Time).Msg("host enrolled")
	return out, nil
}

// admit runs the checks of an enrolment in the contract's order, except that the
// certificate is signed before the token is used up.
func (i *issuer) admit(ctx context.Context, req *protocol.EnrollRequest) (*protocol.CertResponse, error) {
	now, token := time.Now(), &req.Token
	claims := token.Claims
	used, err := i.store.TokenUsed(ctx, claims.Nonce)
	if errors.Is(err, store.ErrNone) {
		return nil, unfit(http.StatusServiceUnavailable, "no database: a used token could not be remembered")
	}
	if err != nil {
		return nil, err
	}
	if used {
		return nil, unfit(http.StatusConflict, "this token was used before; mint a new one")
	}
	snap := i.snapshot.Load()
	keepUntil, err := snap.listed(token, now)
	if err != nil {
		return nil, err
	}
	if err := i.verifyToken(token, now); err != nil {
		return nil, err
	}
	csr, err := pki.ParseCSR([]byte(req.CSRPEM))
	if err != nil {
		return nil, unfit(http.StatusBadRequest, "%s", err)
	}
	if csr.CommonName != claims.Hostname {
		return nil, unfit(http.StatusUnauthorized, "the request is for %q, the token for %q", csr.CommonName, claims.Hostname)
	}
	if subtle.ConstantTimeCompare([]byte(fingerprint(csr)), []byte(claims.ExpectedPubkeyFingerprint)) != 1 {
		return nil, unfit(http.StatusUnauthorized, "the token is for another key")
	}
	if err := snap.declares(csr, claims.Hostname); err != nil {
		return nil, err
	}
	if err := i.notRevokedSince(ctx, snap, token); err != nil {
		return nil, err
	}
	ca, err := i.issuingCA()
	if err != nil {
		return nil, err
	}
	// A certificate that cannot be signed must not cost the host its token.
	issued, err := i.sign(ca, csr, claims.Hostname)
	if err != nil {
		return nil, err
	}
	if err := i.store.UseToken(ctx, claims.Nonce, claims.Hostname, keepUntil); err != nil {
		if errors.Is(err, store.ErrTokenUsed) {
			return nil, unfit(http.StatusConflict, "this token was used before; mint a new one")
		}
		return nil, err
	}
	return i.issue(issued, "<enroll>", "enroll/nonce:"+claims.Nonce), nil
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
		return keepUntil,
			unfit(http.StatusUnauthorized, "the token's nonce is not on the signed list; add it to bootstrapNonces and release")
	case entry.Hostname != claims.Hostname:
		return keepUntil, unfit(http.StatusUnauthorized, "the signed list has this nonce for another host")
	case entry.ExpiresAt.Before(now):
		return keepUntil, unfit(http.StatusUnauthorized, "the nonce's entry on the signed list has expired")
	}
	if entry.ExpiresAt.After(keepUntil) {
		keepUntil = entry.ExpiresAt.Time
	}
	return keepUntil, nil
}

func (i *issuer) verifyToken(token *pki.Token, now time.Time) error {
	if err := token.VerifyTime(now); err != nil {
		return unfit(http.StatusUnauthorized, "%s", err)
	}
	trust, _, err := i.files.trust.get()
	if err != nil {
		// The last good one may hold a key that was taken out since.
		return err
	}
	err = token.VerifySignature(trust.OrgRootKey, now)
	if errors.Is(err, pki.ErrTokenSignature) {
		return unfit(http.StatusUnauthorized, "%s", err)
	}
	return err
}

// declares wants the request's key to be the one the signed fleet has for the host.
func (snap *snapshot) declares(csr *pki.CSR, host string) error {
	switch {
	case snap.rel.Fleet.Hosts[host] == nil:
		return unfit(http.StatusUnauthorized, "host %q is not in the fleet", host)
	case csr.Key == nil:
		return unfit(http.StatusBadRequest, "%s", pki.ErrCSRKey)
	case !pki.SameKey(snap.key(host), csr.Key):
		return unfit(http.StatusUnauthorized, "the fleet declares no pubkey or another pubkey for host %q", host)
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
// notBefore has whole seconds: a certificate issued in the second of the revocation
// would already be revoked, so the next second is waited for.
func (i *issuer) notRevokedSince(ctx context.Context, snap *snapshot, token *pki.Token) error {
	host := token.Claims.Hostname
	revoked, err := i.door.revokedSince(ctx, snap, namesOf(host, i.cfg.AgentSuffix))
	if err != nil || revoked.IsZero() {
		return err
	}
	if token.Claims.IssuedAt.Add(tokenBackdate).Before(revoked) {
		return unfit(http.StatusUnauthorized, "the token was issued before host %q was revoked; mint a new one", host)
	}
	now := time.Now()
	if !now.Truncate(time.Second).Before(revoked) {
		return nil
	}
	if revoked.Sub(now) > time.Second {
		return unfit(http.StatusUnauthorized, "host %q is revoked until %s", host, pki.At(revoked))
	}
	timer := time.NewTimer(time.Until(now.Truncate(time.Second).Add(2 * time.Second)))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// bootstrapReport stores what a host without a certificate has to say, for a
// token that could still enrol it.
func (i *issuer) bootstrapReport(c *call) (any, error) {
	var req protocol.BootstrapReport
	if err := c.read(&req); err != nil {
		return nil, err
	}
	host, now := req.Token.Claims.Hostname, time.Now()
	if err := i.mayReport(c.Context(), &req, now); err != nil {
		return nil, i.refuse("bootstrap report", host, err)
	}
	if !i.reportRate.take(host, now) {
		return nil, i.door.tooMany(c.w, c.Request, "bootstrap-reports", host, "too many bootstrap reports of this host")
	}
	row, err := reportRow(host, nil, req.Event.Event, req.Event.Details)
	if err == nil && i.store != nil {
		err = i.store.AddReport(c.Context(), row)
	}
	if err != nil {
		return nil, err
	}
	i.log.Warn().Str("host", host).Str("event", req.Event.Event).Msg("bootstrap report received")
	return nil, nil
}

func (i *issuer) mayReport(ctx context.Context, req *protocol.BootstrapReport, now time.Time) error {
	if err := i.verifyToken(&req.Token, now); err != nil {
		return err
	}
	event := req.Event.Event
	if _, err := protocol.ParseDetails(event, req.Event.Details); err != nil {
		return unfit(http.StatusBadRequest, "%s", err)
	}
	if event != protocol.EventTrustError && event != protocol.EventEnrollmentFailed {
		return unfit(http.StatusUnprocessableEntity, "event %s needs a certificate", event)
	}
	snap := i.snapshot.Load()
	if _, err := snap.listed(&req.Token, now); err != nil {
		return err
	}
	if snap.rel.Fleet.Hosts[req.Token.Claims.Hostname] == nil {
		return unfit(http.StatusUnauthorized, "host %q is not in the fleet", req.Token.Claims.Hostname)
	}
	used, err := i.store.TokenUsed(ctx, req.Token.Claims.Nonce)
	switch {
	case errors.Is(err, store.ErrNone):
		err = nil // without a database no token has enrolled anybody
	case err == nil && used:
		err = unfit(http.StatusUnauthorized, "this token was used before")
	}
	return err
}
