package cp

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"nixfleet/pki"
	"nixfleet/roles/protocol"
	"nixfleet/store"
)

// issuer gives hosts their certificates, and writes down which.
type issuer struct {
	cfg        *Config
	log        zerolog.Logger
	files      *files
	snapshot   *current
	store      store.Database
	door       *door
	metrics    *metrics
	reportRate *buckets // bootstrap reports by host

	auditMu sync.Mutex
}

func newIssuer(d *door) *issuer {
	return &issuer{
		cfg: d.cfg, log: d.log, files: d.files, snapshot: d.snapshot, store: d.store, door: d, metrics: d.metrics,
		reportRate: newBuckets(rate.Every(10*time.Second), 5),
	}
}

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

// issuingCA is the signer of agents' certificates.
func (i *issuer) issuingCA() (*pki.CA, error) {
	ca, _, err := i.files.issuing.get()
	if ca == nil {
		return nil, errors.Join(errors.New("no issuing CA is configured"), err)
	}
	if now := time.Now(); now.After(ca.Cert.NotAfter) {
		return nil, fmt.Errorf("the issuing CA's certificate expired at %s", pki.At(ca.Cert.NotAfter))
	}
	return ca, nil
}

// signed is a certificate that was signed and not given out.
type signed struct {
	text []byte
	cert *x509.Certificate
	at   time.Time
}

func (i *issuer) sign(ca *pki.CA, csr *pki.CSR, host string) (*signed, error) {
	now := time.Now()
	text, cert, err := ca.IssueAgent(csr, host, i.cfg.AgentSuffix, now, i.cfg.AgentValidity)
	if err != nil {
		return nil, unfit(http.StatusBadRequest, "%s", err)
	}
	return &signed{text, cert, now}, nil
}

// issue records a certificate and gives it out.
func (i *issuer) issue(c *signed, requester, context string) *protocol.CertResponse {
	i.audit(auditLine{
		At: pki.At(c.at), Requester: requester, Issued: c.cert.Subject.CommonName, NotAfter: pki.At(c.cert.NotAfter),
		Validity: int64(i.cfg.AgentValidity / time.Second), Context: context,
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
func (i *issuer) audit(line auditLine) {
	doc, err := json.Marshal(line)
	if err != nil {
		i.log.Error().Err(err).Msg("issuance not logged")
		return
	}
	i.auditMu.Lock()
	defer i.auditMu.Unlock()
	f, err := os.OpenFile(i.cfg.AuditLog, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err == nil {
		_, err = f.Write(append(doc, '\n'))
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		i.log.Error().Err(err).Msg("issuance not logged")
	}
}

// renew takes the name from the caller's certificate, never from the request.
func (i *issuer) renew(c *call) (any, error) {
	var req protocol.RenewRequest
	if err := c.read(&req); err != nil {
		return nil, err
	}
	host := c.caller.Name
	out, err := i.renewed(c.caller, &req)
	if err != nil {
		return nil, i.refuse("renewal", host, err)
	}
	i.metrics.enrolments.WithLabelValues("renewed").Inc()
	i.log.Info().Str("host", host).Time("not_after", out.NotAfter.Time).Msg("certificate renewed")
	return out, nil
}

func (i *issuer) renewed(id pki.Identity, req *protocol.RenewRequest) (*protocol.CertResponse, error) {
	csr, err := pki.ParseCSR([]byte(req.CSRPEM))
	if err != nil {
		return nil, unfit(http.StatusBadRequest, "%s", err)
	}
	if csr.Key == nil {
		return nil, unfit(http.StatusBadRequest, "%s", pki.ErrCSRKey)
	}
	host := id.Name
	if id.Role != pki.RoleAgent {
		return nil, unfit(http.StatusUnauthorized, "certificate %q is not a host certificate", host)
	}
	if csr.CommonName != host && csr.CommonName != pki.AgentName(host, i.cfg.AgentSuffix) {
		return nil, unfit(http.StatusUnauthorized, "the request is for %q, the certificate is of %q", csr.CommonName, host)
	}
	if err := i.snapshot.Load().declares(csr, host); err != nil {
		return nil, err
	}
	ca, err := i.issuingCA()
	if err != nil {
		return nil, err
	}
	issued, err := i.sign(ca, csr, host)
	if err != nil {
		return nil, err
	}
	return i.issue(issued, id.CommonName, "renew/prev:<unknown>"), nil
}
