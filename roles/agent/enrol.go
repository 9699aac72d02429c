package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"nixfleet/pki"
	"nixfleet/roles/command"
	"nixfleet/roles/protocol"
	"nixfleet/roles/protocol/client"
)

// identity is this host's key and certificate.
type identity struct {
	hostname string
	certPath string
	key      *pki.PrivateKey // of the certificate
	host     *pki.PrivateKey // signs reports; nil when it cannot be read
	token    string          // file
	now      func() time.Time
}

// signer signs reports. It is nil when the host key cannot be read.
func (i *identity) signer() protocol.Signer {
	if i.host == nil {
		return nil
	}
	return i.host
}

// certificate is the current one, read anew so that a renewal is used at once.
// It is nil while there is none that is valid.
func (i *identity) certificate() (*tls.Certificate, error) {
	text, err := readSmall(i.certPath)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read certificate: %w", err)
	}
	out := &tls.Certificate{PrivateKey: i.key.Crypto()}
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type == "CERTIFICATE" {
			out.Certificate = append(out.Certificate, block.Bytes)
		}
	}
	if len(out.Certificate) == 0 {
		return nil, fmt.Errorf("%s holds no certificate", i.certPath)
	}
	if out.Leaf, err = x509.ParseCertificate(out.Certificate[0]); err != nil {
		return nil, fmt.Errorf("read certificate: %w", err)
	}
	return out, nil
}

// usable is the certificate when it is valid now.
func (i *identity) usable() *tls.Certificate {
	cert, err := i.certificate()
	if err != nil || cert == nil || i.now().After(cert.Leaf.NotAfter) {
		return nil
	}
	return cert
}

// dueForRenewal: less than fraction of the certificate's life is left.
func (i *identity) dueForRenewal(fraction float64) bool {
	cert := i.usable()
	if cert == nil {
		return false
	}
	life := cert.Leaf.NotAfter.Sub(cert.Leaf.NotBefore)
	return float64(cert.Leaf.NotAfter.Sub(i.now())) < fraction*float64(life)
}

// prepare makes sure that a certificate can be kept, before a token is spent
// on one.
func (i *identity) prepare() error {
	dir := filepath.Dir(i.certPath)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("certificate directory: %w", err)
	}
	probe, err := os.CreateTemp(dir, ".writable-*")
	if err != nil {
		return fmt.Errorf("certificate directory: %w", err)
	}
	// A full disk makes an empty file all the same.
	_, err = probe.Write(make([]byte, certificateRoom))
	if err = errors.Join(err, probe.Sync(), probe.Close(), os.Remove(probe.Name())); err != nil {
		return fmt.Errorf("certificate directory: %w", err)
	}
	return nil
}

// readToken reads the bootstrap token, opened with the host's ssh key when it
// is encrypted.
func (i *identity) readToken(sshKeyFile string) (*pki.Token, error) {
	data, err := readSmall(i.token)
	if err != nil {
		return nil, fmt.Errorf("read bootstrap token: %w", err)
	}
	if pki.IsSealed(data) {
		keyText, err := readSmall(sshKeyFile)
		if err != nil {
			return nil, fmt.Errorf("open bootstrap token: %w", err)
		}
		ids, err := pki.ParseIdentities(keyText)
		if err != nil {
			return nil, fmt.Errorf("open bootstrap token: %w", err)
		}
		if data, err = pki.Open(data, ids...); err != nil {
			return nil, fmt.Errorf("open bootstrap token with %s: %w", sshKeyFile, err)
		}
	}
	return pki.ParseToken(data)
}

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
		err := a.enrolOnce(ctx)
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

func (a *agent) enrolOnce(ctx context.Context) error {
	if err := a.identity.prepare(); err != nil {
		return err
	}
	token, err := a.identity.readToken(a.cfg.SSHHostKey)
	if err != nil {
		return err
	}
	if token.Claims.Nonce == a.spentNonce {
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
	if err := a.keepCertificate(answer.CertPEM); err != nil {
		return err
	}
	a.spentNonce = token.Claims.Nonce
	a.log.Info().Time("not_after", answer.NotAfter.Time).Msg("enrolled")
	return a.dir.write(enrolledFile, enrolled{token.Claims.Nonce})
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
		a.spentNonce = token.Claims.Nonce
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

// keepCertificate checks that a certificate is for our key before it replaces
// the one we have.
func (a *agent) keepCertificate(text string) error {
	block, _ := pem.Decode([]byte(text))
	if block == nil || block.Type != "CERTIFICATE" {
		return errors.New("the control plane answered no certificate")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return fmt.Errorf("the control plane's certificate: %w", err)
	}
	public, ok := a.identity.key.Crypto().Public().(interface{ Equal(x any) bool })
	if ok && !public.Equal(cert.PublicKey) {
		return errors.New("the control plane answered a certificate for another key")
	}
	if err := replace(a.identity.certPath, []byte(text), 0o600); err != nil {
		return err
	}
	a.client.CloseIdle()
	return nil
}

// renew gets the next certificate; a failure is reported and tried again at
// the next check-in, since half of the life is left.
func (a *agent) renew(ctx context.Context) {
	if !a.identity.dueForRenewal(a.cfg.RenewalFraction) {
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
		return a.keepCertificate(answer.CertPEM)
	}()
	if err != nil {
		if ctx.Err() == nil {
			a.log.Warn().Err(err).Msg("certificate not renewed")
			if !a.saidRenewal.lately(err.Error()) {
				a.report(protocol.EventRenewalFailed, nil, protocol.Reasoned{Reason: err.Error()})
			}
		}
		return
	}
	a.log.Info().Msg("certificate renewed")
}
