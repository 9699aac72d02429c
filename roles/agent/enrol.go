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
	"nixfleet/roles/command"
	"nixfleet/roles/protocol"
	"nixfleet/roles/protocol/client"
)

const (
	certificateRoom = 16 << 10 // bytes, more than any certificate and its new file take
	notReadyWait    = 10 * time.Second
	maxEnrolWait    = 5 * time.Minute
)

// errNoToken: there is neither a valid certificate nor a token to get one.
var errNoToken = &command.Error{
	Err:  errors.New("no valid certificate and no bootstrap token"),
	Hint: "mint one with nixfleet mint-token and name it with --bootstrap-token-file",
}

// enrol gets the first certificate, or a new one after the last has expired. It
// waits out a control plane that is away or not ready; a refusal is reported
// and tried again with more and more patience, since the fleet's declaration
// may be mended meanwhile.
func (a *agent) enrol(ctx context.Context) error {
	if a.identity.usable() != nil {
		return nil
	}
	if a.cfg.TokenFile == "" {
		return errNoToken
	}
	for wait := time.Second; ; wait = min(2*wait, maxEnrolWait) {
		err := a.takeKept()
		if err != nil {
			err = a.enrolOnce(ctx)
		}
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		pause := wait/2 + a.cfg.Jitter(wait)
		var refused *client.Error
		if errors.As(err, &refused) && refused.NotReady() {
			pause = notReadyWait
		}
		a.log.Warn().Err(err).Dur("retry_in", pause).Msg("not enrolled yet")
		a.status.note(func(s *status) { s.Waiting, s.Next = "enrolment: "+err.Error(), command.HintOf(err) })
		if err := a.rest(ctx, pause); err != nil {
			return err
		}
	}
}

// errNothingKept means that no earlier enrolment left a certificate.
var errNothingKept = errors.New("no certificate is kept")

// takeKept takes the certificate of an earlier enrolment that was not valid yet by this
// host's clock, once it is.
func (a *agent) takeKept() error {
	if a.identity.onTrial() == nil {
		return errNothingKept
	}
	if err := a.takeTrial(); err != nil {
		return err
	}
	a.noteEnrolled()
	return nil
}

// spentAgain is how long a token waits that was spent already by all that this agent knows.
// It is not believed for good: whoever answered may have lied, and to the right control
// plane the token may be new.
const spentAgain = time.Hour

// spent is the token that a certificate was got with, or that was refused as used.
type spent struct {
	nonce string
	at    time.Time // when it was last tried; zero before this agent's start
}

func (s *spent) holds(nonce string) bool {
	return nonce == s.nonce && time.Since(s.at) < spentAgain
}

func (a *agent) enrolOnce(ctx context.Context) error {
	if err := a.identity.prepare(); err != nil {
		return err
	}
	token, err := a.identity.readToken(a.cfg.SSHHostKey)
	if err != nil {
		return err
	}
	if a.spent.holds(token.Claims.Nonce) {
		if err := a.identity.waitsForClock(); err != nil {
			return err
		}
		return &command.Error{Err: errors.New("the bootstrap token was used before"), Hint: "mint a new one with nixfleet mint-token"}
	}
	csr, err := pki.NewCSR(a.identity.key.Crypto(), a.cfg.MachineID)
	if err != nil {
		return err
	}
	answer, err := a.anonymous.Enroll(ctx, &protocol.EnrollRequest{Token: *token, CSRPEM: string(csr)})
	if err != nil {
		a.enrolFailed(ctx, token, err)
		return fmt.Errorf("enrol: %w", err)
	}
	err = a.keepEnrolled(answer.CertPEM)
	if err != nil && !errors.Is(err, errEarly) {
		return fmt.Errorf("enrol: %w", err) // the token may be new to the right control plane
	}
	a.spent = spent{token.Claims.Nonce, time.Now()}
	err = errors.Join(err, a.dir.Write(enrolledFile, enrolled{token.Claims.Nonce}))
	if err == nil {
		a.log.Info().Time("not_after", answer.NotAfter.Time).Msg("enrolled")
		a.noteEnrolled()
	}
	return err
}

// noteEnrolled takes back what status said about the enrolment.
func (a *agent) noteEnrolled() {
	a.overdue.Store(true)
	a.status.note(func(s *status) {
		s.Waiting, s.Next, s.ContactError = "the control plane's first answer to a check-in; this host is enrolled", "", ""
	})
}

const clockHint = "set this host's clock, for example by NTP"

// keepEnrolled keeps the certificate of an enrolment: on trial while another is still
// valid. One that is not valid yet is kept as well, since its token is spent: clocks are set
// late on boards without one of their own.
func (a *agent) keepEnrolled(text string) error {
	_, err := a.identity.check(text, nil)
	switch {
	case errors.Is(err, errEarly):
		if err := a.identity.keepOnTrial(text); err != nil {
			return err
		}
		return &command.Error{Err: err, Hint: clockHint}
	case err != nil:
		return err
	}
	if err := a.identity.keepOnTrial(text); err != nil {
		return err
	}
	if a.identity.usable() == nil {
		return a.takeTrial()
	}
	return nil
}

// takeTrial puts the certificate on trial in use.
func (a *agent) takeTrial() error {
	err := a.identity.accept()
	a.client.CloseIdle()
	return err
}

const enrolledFile = "enrolled.json"

// enrolled remembers the token that the certificate was got with.
type enrolled struct {
	Nonce string `json:"nonce" shape:"R"`
}

// enrolFailed tells the control plane, while the token still speaks for us.
func (a *agent) enrolFailed(ctx context.Context, token *pki.Token, err error) {
	var refused *client.Error
	if !errors.As(err, &refused) {
		return
	}
	if refused.Status == 409 {
		a.spent = spent{token.Claims.Nonce, time.Now()}
		return
	}
	if refused.Status >= 500 || a.reportedEnrolment {
		return
	}
	a.reportedEnrolment = true
	details, err := protocol.SignEvidence(nil, a.cfg.MachineID, nil, protocol.EventEnrollmentFailed, protocol.Reasoned{Reason: refused.Message})
	if err != nil {
		return
	}
	if err := a.anonymous.BootstrapReport(ctx, &protocol.BootstrapReport{
		Token: *token, AgentVersion: a.cfg.Version, OccurredAt: pki.At(a.now().Truncate(time.Second)),
		Event: protocol.BootstrapEvent{Event: protocol.EventEnrollmentFailed, Details: details},
	}); err != nil {
		a.log.Debug().Err(err).Msg("enrolment failure not reported")
	}
}

// renew asks for the next certificate and puts it on trial. A failure is reported and tried
// again, since half of the life is left: an answer that is not acceptable after longer and
// longer pauses, so that its certificate does not cost a handshake at every check-in.
func (a *agent) renew(ctx context.Context) {
	if !a.identity.dueForRenewal(a.cfg.RenewalFraction) || a.identity.onTrial() != nil || a.renewal.waits() {
		return
	}
	err := func() error {
		csr, err := pki.NewCSR(a.identity.key.Crypto(), a.cfg.MachineID)
		if err != nil {
			return err
		}
		answer, err := a.client.Renew(ctx, &protocol.RenewRequest{CSRPEM: string(csr)})
		if err != nil {
			return err
		}
		inUse := a.identity.usable()
		if inUse == nil {
			return errors.New("the certificate in use ended meanwhile")
		}
		if _, err = a.identity.check(answer.CertPEM, inUse.Leaf); err != nil {
			a.renewal.postpone()
			return err
		}
		return a.identity.keepOnTrial(answer.CertPEM)
	}()
	if err != nil && ctx.Err() == nil {
		a.renewalFailed(err)
	}
}

func (a *agent) renewalFailed(err error) {
	a.log.Warn().Err(err).Msg("certificate not renewed")
	if !a.saidRenewal.lately(err.Error()) {
		a.report(protocol.EventRenewalFailed, "", protocol.Reasoned{Reason: err.Error()})
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
func (a *agent) tryCertificate(ctx context.Context, cert *tls.Certificate, use func() error) (*protocol.CheckinResponse, time.Time, error) {
	trial, err := a.newClient(func() (*tls.Certificate, error) { return cert, nil })
	if err != nil {
		return nil, time.Time{}, err
	}
	defer trial.CloseIdle()
	req, err := a.facts(ctx)
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("read the host's state: %w", err)
	}
	sent := time.Now()
	answer, err := trial.Checkin(ctx, req, 0)
	if err != nil {
		return nil, sent, err
	}
	err = use()
	a.client.CloseIdle()
	return answer, sent, err
}

// checkinTrial is the check-in that decides about a certificate on trial. Without one it
// gives neither answer nor error.
func (a *agent) checkinTrial(ctx context.Context) (answer *protocol.CheckinResponse, sent time.Time, err error) {
	cert := a.identity.onTrial()
	if cert == nil {
		return nil, sent, nil
	}
	answer, sent, err = a.tryCertificate(ctx, cert, a.identity.accept)
	if err == nil {
		a.renewal = renewal{}
		a.log.Info().Time("not_after", cert.Leaf.NotAfter).Msg("certificate renewed")
	}
	return answer, sent, err
}

// judgeTrial forgets a certificate on trial that had no answer while the one in use has. A
// host whose certificates are both refused puts the newer one in use: neither is lost by it.
func (a *agent) judgeTrial(onTrial, inUse error) {
	if onTrial == nil || errors.Is(onTrial, errUnproven) {
		return
	}
	var err error
	switch {
	case inUse == nil:
		if a.renewal.tries++; !certificateRefused(onTrial) && a.renewal.tries < trialTries {
			return
		}
		a.renewal.postpone()
		a.renewalFailed(fmt.Errorf("the new certificate was not accepted, the one before is used again: %w", onTrial))
		err = a.identity.discard()
	case certificateRefused(onTrial) && certificateRefused(inUse):
		err = a.takeTrial()
	}
	if err != nil {
		a.log.Error().Err(err).Msg("certificate on trial not put away")
	}
}

// checkinPrevious checks in with the certificate before, when the one in use was refused.
func (a *agent) checkinPrevious(ctx context.Context, why error) (answer *protocol.CheckinResponse, sent time.Time, err error) {
	previous := a.identity.valid(a.identity.previousPath())
	if previous == nil || ctx.Err() != nil || !certificateRefused(why) {
		return nil, sent, why
	}
	answer, sent, err = a.tryCertificate(ctx, previous, a.identity.restore)
	if err != nil {
		return nil, sent, why
	}
	a.log.Warn().Err(why).Msg("certificate refused; the one before is in use again")
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
