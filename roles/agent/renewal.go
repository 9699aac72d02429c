package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"nixfleet/pki"
	"nixfleet/roles/protocol"
	"nixfleet/roles/protocol/client"
)

// renew asks for the next certificate and puts it on trial. A failure is reported and tried
// again, since half of the life is left: an answer that is not acceptable after longer and
// longer pauses, so that its certificate does not cost a handshake at every check-in.
func (e *enroller) renew(ctx context.Context) {
	if !e.identity.dueForRenewal(e.cfg.RenewalFraction) || e.identity.onTrial() != nil || e.renewal.waits() {
		return
	}
	err := func() error {
		csr, err := pki.NewCSR(e.identity.key.Crypto(), e.cfg.MachineID)
		if err != nil {
			return err
		}
		answer, err := e.client.Renew(ctx, &protocol.RenewRequest{CSRPEM: string(csr)})
		if err != nil {
			return err
		}
		inUse := e.identity.usable()
		if inUse == nil {
			return errors.New("the certificate in use expired meanwhile")
		}
		if _, err = e.identity.check(answer.CertPEM, inUse.Leaf); err != nil {
			e.renewal.postpone()
			e.status.refused.Add(1)
			return err
		}
		return e.identity.keepOnTrial(answer.CertPEM)
	}()
	if err != nil && ctx.Err() == nil {
		e.renewalFailed(err)
	}
}

func (e *enroller) renewalFailed(err error) {
	e.log.Warn().Err(err).Msg("certificate not renewed")
	if !e.saidRenewal.lately(err.Error()) {
		e.reporter.report(protocol.EventRenewalFailed, "", protocol.Reasoned{Reason: err.Error()})
	}
}

// renewal is the pace of renewals whose certificate was not acceptable or not accepted.
type renewal struct {
	pause time.Duration
	until time.Time
	tries int // check-ins in vain with the certificate on trial
}

func (r *renewal) waits() bool { return time.Now().Before(r.until) }

func (r *renewal) postpone() {
	r.pause = min(max(2*r.pause, sayAgain), sayLast)
	r.until, r.tries = time.Now().Add(r.pause), 0
}

// trialTries is how many check-ins in vain a certificate on trial has, while the one in use
// is answered; a refusal is enough at once.
const trialTries = 3

// tryCertificate checks in with a certificate that is not in use: one on trial, or the one
// before when the one in use is refused. What is answered is put in use.
func (e *enroller) tryCertificate(ctx context.Context, cert *tls.Certificate,
	use func() error) (*protocol.CheckinResponse, time.Time, error) {
	trial, err := newClient(e.cfg, e.clock, func() (*tls.Certificate, error) { return cert, nil })
	if err != nil {
		return nil, time.Time{}, err
	}
	defer trial.CloseIdle()
	req, err := e.contact.facts(ctx)
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("read the host's state: %w", err)
	}
	sent := time.Now()
	answer, err := trial.Checkin(ctx, req, 0)
	if err != nil {
		return nil, sent, err
	}
	err = use()
	e.client.CloseIdle()
	return answer, sent, err
}

// checkinTrial is the check-in that decides about a certificate on trial. Without one it
// gives neither answer nor error.
func (e *enroller) checkinTrial(ctx context.Context) (answer *protocol.CheckinResponse, sent time.Time, err error) {
	cert := e.identity.onTrial()
	if cert == nil {
		return nil, sent, nil
	}
	answer, sent, err = e.tryCertificate(ctx, cert, e.identity.accept)
	if err == nil {
		e.renewal = renewal{}
		e.log.Info().Time("not_after", cert.Leaf.NotAfter).Msg("certificate renewed")
	}
	return answer, sent, err
}

// judgeTrial forgets a certificate on trial that had no answer while the one in use has. A
// host whose certificates are both refused puts the newer one in use: neither is lost by it.
func (e *enroller) judgeTrial(onTrial, inUse error) {
	if onTrial == nil || errors.Is(onTrial, errUnproven) {
		return
	}
	var err error
	switch {
	case inUse == nil:
		if e.renewal.tries++; !certificateRefused(onTrial) && e.renewal.tries < trialTries {
			return
		}
		e.renewal.postpone()
		e.renewalFailed(fmt.Errorf("the new certificate was not accepted, the previous one is used again: %w", onTrial))
		err = e.identity.discard()
	case certificateRefused(onTrial) && certificateRefused(inUse):
		err = e.takeTrial()
	}
	if err != nil {
		e.log.Error().Err(err).Msg("new certificate not removed")
	}
}

// checkinPrevious checks in with the certificate before, when the one in use was refused.
func (e *enroller) checkinPrevious(ctx context.Context, why error) (answer *protocol.CheckinResponse, sent time.Time,
	err error) {
	previous := e.identity.valid(e.identity.previousPath())
	if previous == nil || ctx.Err() != nil || !certificateRefused(why) {
		return nil, sent, why
	}
	answer, sent, err = e.tryCertificate(ctx, previous, e.identity.restore)
	if err != nil {
		return nil, sent, why
	}
	e.log.Warn().Err(why).Msg("certificate refused; the previous certificate is in use again")
	return answer, sent, nil
}

// certificateDenied reports whether the other side said that it does not take our
// certificate: with 401, or with an alert of TLS.
func certificateDenied(err error) bool {
	var refused *client.Error
	if errors.As(err, &refused) {
		return refused.Status == http.StatusUnauthorized
	}
	var at *net.OpError
	return errors.As(err, &at) && at.Op == "remote error"
}

// certificateRefused reports whether an error can mean that the other side does not take
// our certificate. TLS 1.3 tells it after the handshake, and the line may be gone before the
// alert is read.
func certificateRefused(err error) bool {
	var refused *client.Error
	if errors.As(err, &refused) {
		return certificateDenied(err) || refused.Status == http.StatusForbidden
	}
	var at *net.OpError
	if errors.As(err, &at) {
		return at.Op == "remote error" || at.Op == "read" || at.Op == "write"
	}
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}
