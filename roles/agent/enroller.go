package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rs/zerolog"

	"nixfleet/pki"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/command"
	"nixfleet/roles/protocol"
	"nixfleet/roles/protocol/client"
)

const (
	certificateRoom = 16 << 10 // bytes, more than any certificate and its new file take
	notReadyWait    = 10 * time.Second
	maxEnrolWait    = 5 * time.Minute
)

// enroller gets this host's certificates: the first with a bootstrap token, each next one
// with the one in use.
type enroller struct {
	cfg       *Config
	log       zerolog.Logger
	dir       journal.Directory
	clock     *clock
	status    *statusFile
	reporter  *reporter
	contact   *contact
	identity  *identity
	client    *client.Client // with the certificate in use
	anonymous *client.Client // for enrolment only

	spent             spent
	renewal           renewal
	reportedEnrolment bool
	saidRenewal       said // that failed
}

// noToken says that there is neither a valid certificate nor a token to get one.
func (e *enroller) noToken() error {
	err := errors.New("no valid certificate and no bootstrap token")
	if _, damaged := e.identity.certificate(); damaged != nil {
		err = fmt.Errorf("no bootstrap token, and no certificate: %w", damaged)
	}
	return &command.Error{Err: err, Hint: "mint one with nixfleet mint-token and name it with --bootstrap-token-file"}
}

// enrol gets the first certificate, or a new one after the last has expired or was damaged. It
// waits out a control plane that is away or not ready; a refusal is reported
// and tried again with more and more patience, since the fleet's declaration
// may be mended meanwhile. Without a token it waits for a certificate: an agent that ended
// would not carry on an activation either.
func (e *enroller) enrol(ctx context.Context) error {
	for wait := time.Second; ; wait = min(2*wait, maxEnrolWait) {
		if e.identity.usable() != nil {
			return nil
		}
		err := e.takeKept()
		switch {
		case err == nil:
		case e.cfg.TokenFile == "":
			err = e.noToken()
		default:
			err = e.enrolOnce(ctx)
		}
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		pause := wait/2 + e.cfg.Jitter(wait)
		var refused *client.Error
		if errors.As(err, &refused) && refused.NotReady() {
			pause = notReadyWait
		}
		e.log.Warn().Err(err).Dur("retry_in", pause).Msg("not enrolled yet")
		e.status.note(func(s *status) { s.Waiting, s.Next = "enrolment: "+err.Error(), command.HintOf(err) })
		if err := e.status.rest(ctx, pause); err != nil {
			return err
		}
	}
}

// errNothingKept means that no earlier enrolment left a certificate.
var errNothingKept = errors.New("no earlier certificate is kept")

// takeKept takes the certificate of an earlier enrolment that was not valid yet by this
// host's clock, once it is.
func (e *enroller) takeKept() error {
	if e.identity.onTrial() == nil {
		return errNothingKept
	}
	if err := e.takeTrial(); err != nil {
		return err
	}
	e.noteEnrolled()
	return nil
}

// spentAgain is how long a token waits that was spent already by all that this agent knows.
// That is not believed for good: a control plane may have lied, and to the right one the token
// may be new.
const spentAgain = time.Hour

// spent is the token that a certificate was got with, or that was refused as used.
type spent struct {
	nonce string
	at    time.Time // when it was last tried; zero before this agent's start
}

func (s *spent) holds(nonce string) bool {
	return nonce == s.nonce && time.Since(s.at) < spentAgain
}

func (e *enroller) enrolOnce(ctx context.Context) error {
	if err := e.identity.prepare(); err != nil {
		return err
	}
	token, err := e.identity.readToken(e.cfg.SSHHostKey)
	if err != nil {
		return err
	}
	if e.spent.holds(token.Claims.Nonce) {
		if err := e.identity.waitsForClock(); err != nil {
			return err
		}
		return &command.Error{Err: errors.New("the bootstrap token was used before"),
			Hint: "mint a new one with nixfleet mint-token"}
	}
	csr, err := pki.NewCSR(e.identity.key.Crypto(), e.cfg.MachineID)
	if err != nil {
		return err
	}
	answer, err := e.anonymous.Enroll(ctx, &protocol.EnrollRequest{Token: *token, CSRPEM: string(csr)})
	if err != nil {
		e.enrolFailed(ctx, token, err)
		return fmt.Errorf("enrol: %w", err)
	}
	err = e.keepEnrolled(answer.CertPEM)
	if err != nil && !errors.Is(err, errEarly) {
		return fmt.Errorf("enrol: %w", err) // the token may be new to the right control plane
	}
	e.spent = spent{token.Claims.Nonce, time.Now()}
	err = errors.Join(err, e.dir.Write(enrolledFile, enrolled{token.Claims.Nonce}))
	if err == nil {
		e.log.Info().Time("not_after", answer.NotAfter.Time).Msg("enrolled")
		e.noteEnrolled()
	}
	return err
}

// noteEnrolled takes back what status said about the enrolment.
func (e *enroller) noteEnrolled() {
	e.status.overdue.Store(true)
	e.status.note(func(s *status) {
		s.Waiting, s.Next, s.ContactError = "the control plane's first answer to a check-in; this host is enrolled", "", ""
	})
}

const clockHint = "set this host's clock, for example by NTP"

// keepEnrolled keeps the certificate of an enrolment: on trial while another is still
// valid. One that is not valid yet is kept as well, since its token is spent: clocks are set
// late on boards without one of their own.
func (e *enroller) keepEnrolled(text string) error {
	_, err := e.identity.check(text, nil)
	switch {
	case errors.Is(err, errEarly):
		if err := e.identity.keepOnTrial(text); err != nil {
			return err
		}
		return &command.Error{Err: err, Hint: clockHint}
	case err != nil:
		return err
	}
	if err := e.identity.keepOnTrial(text); err != nil {
		return err
	}
	if e.identity.usable() == nil {
		return e.takeTrial()
	}
	return nil
}

// takeTrial puts the certificate on trial in use.
func (e *enroller) takeTrial() error {
	err := e.identity.accept()
	e.client.CloseIdle()
	return err
}

const enrolledFile = "enrolled.json"

// enrolled remembers the token that the certificate was got with.
type enrolled struct {
	Nonce string `json:"nonce" shape:"R"`
}

// restore reads which token the last agent spent.
func (e *enroller) restore(warn func(error)) {
	if last := journal.Optional[enrolled](e.dir, enrolledFile, warn); last != nil {
		e.spent = spent{nonce: last.Nonce, at: time.Now()}
	}
}

// enrolFailed tells the control plane, while the token still speaks for us.
func (e *enroller) enrolFailed(ctx context.Context, token *pki.Token, err error) {
	var refused *client.Error
	if !errors.As(err, &refused) {
		return
	}
	if refused.Status == 409 {
		e.spent = spent{token.Claims.Nonce, time.Now()}
		return
	}
	if refused.Status >= 500 || e.reportedEnrolment {
		return
	}
	e.reportedEnrolment = true
	details, err := protocol.SignEvidence(nil, e.cfg.MachineID, nil, protocol.EventEnrollmentFailed,
		protocol.Reasoned{Reason: protocol.Clip(refused.Error(), maxReason)})
	if err != nil {
		return
	}
	if err := e.anonymous.BootstrapReport(ctx, &protocol.BootstrapReport{
		Token: *token, AgentVersion: e.cfg.Version, OccurredAt: pki.At(e.clock.now().Truncate(time.Second)),
		Event: protocol.BootstrapEvent{Event: protocol.EventEnrollmentFailed, Details: details},
	}); err != nil {
		e.log.Debug().Err(err).Msg("enrolment failure not reported")
	}
}

// refusals is how many check-ins in a row are in vain before a connection that only ends is
// taken for a certificate that is not accepted.
const refusals = 3

// enrolAnew gets another certificate when this one is not accepted, or is over, and
// there is a token that has not been used. One that is still valid is kept until there is
// another: it may be the control plane that is wrong. A server that cannot read a certificate
// may end the connection without a word that arrives; a control plane that starts anew does so
// as well, and is not worth a token, so that this counts after some failures in a row only.
func (e *enroller) enrolAnew(ctx context.Context, err error, failures int) error {
	valid := e.identity.usable() != nil
	denied := certificateDenied(err) || failures >= refusals && certificateRefused(err)
	if e.cfg.TokenFile == "" || valid && !denied {
		return nil
	}
	if token, err := e.identity.readToken(e.cfg.SSHHostKey); err != nil || e.spent.holds(token.Claims.Nonce) {
		return nil
	}
	if !valid {
		return e.enrol(ctx)
	}
	return e.enrolOnce(ctx)
}
