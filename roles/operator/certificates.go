package operator

import (
	"crypto/x509"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"nixfleet/pki"
	"nixfleet/roles/command"
)

const (
	day             = 24 * time.Hour
	rootDays        = 3650
	issuingDays     = 365
	certificateDays = 365
	maxDays         = 100 * 365
)

var dnsSuffix = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$`)

// fleetCA makes the root and, under it, the issuing CA whose names it confines
// to the suffix.
func (m *minted) fleetCA(dir string) (*pki.CA, error) {
	suffix := m.c.String("suffix")
	if !dnsSuffix.MatchString(suffix) {
		return nil, command.Usage("", "--suffix %q is not a domain such as fleet.example.com", suffix)
	}
	root, rootKey, err := pki.NewFleetRoot("fleet-root."+suffix, m.now, rootDays*day)
	if err != nil {
		return nil, fmt.Errorf("make fleet root: %w", err)
	}
	rootPEM := certificatePEM(root.Cert.Raw)
	text := string(rootPEM)
	m.trust.RootCAPEM = &text
	if err := m.writeKey(filepath.Join(dir, rootKeyName), rootKey); err != nil {
		return nil, err
	}
	m.write(filepath.Join(dir, rootCertName), rootPEM, 0o644)
	return root, m.issuingCA(root, dir, nil)
}

// issuingCA makes an issuing CA under root, and the control plane's --client-ca: the
// root for operators, the issuing CA for agents, and those before it, whose
// certificates are still about.
func (m *minted) issuingCA(root *pki.CA, dir string, before []string) error {
	issuing, key, err := root.NewIssuingCA(m.c.String("suffix"), m.now, issuingDays*day)
	if err != nil {
		return err
	}
	if err := m.writeKey(filepath.Join(dir, "issuing-ca.key.pem"), key); err != nil {
		return err
	}
	m.issuing(root, issuing.Cert, dir, before)
	return nil
}

// issuing takes the certificate of an issuing CA.
func (m *minted) issuing(root *pki.CA, cert *x509.Certificate, dir string, before []string) {
	text := certificatePEM(cert.Raw)
	m.trust.IssuanceCAPEMs = append([]string{string(text)}, before...)
	m.write(filepath.Join(dir, "issuing-ca.cert.pem"), text, 0o644)
	bundle := append(certificatePEM(root.Cert.Raw), text...)
	for _, ca := range before {
		bundle = append(bundle, strings.TrimSpace(ca)+"\n"...)
	}
	m.write(filepath.Join(dir, "client-ca.pem"), bundle, 0o644)
}

func (m *minted) issuingFromFiles(dir string) error {
	if suffix := m.c.String("suffix"); !dnsSuffix.MatchString(suffix) {
		return command.Usage("", "--suffix %q is not a domain such as fleet.example.com", suffix)
	}
	root, err := loadRoot(m.c)
	if err != nil {
		return err
	}
	if m.sealed, err = recipients(m.c); err != nil {
		return err
	}
	var before []string
	if path := m.c.String("trust-file"); path != "" {
		trust, err := loadTrust(m.c, path)
		if err != nil {
			return err
		}
		before = trust.IssuanceCAPEMs
	}
	path := m.c.String("public-key")
	if path == "" {
		return m.issuingCA(root, dir, before)
	}
	data, err := command.ReadFile(path, command.SmallFile)
	if err != nil {
		return fmt.Errorf("read public key: %w", err)
	}
	public, err := pki.ParseP256(data)
	if err != nil {
		return command.Hinted(fmt.Errorf("read public key %s: %w", path, err),
			"--public-key is 64 raw bytes X and Y, or PEM as openssl pkey -pubout prints it")
	}
	cert, err := root.CertifyIssuingCA(public, m.c.String("suffix"), m.now, issuingDays*day)
	if err != nil {
		return err
	}
	m.issuing(root, cert, dir, before)
	return nil
}

func (m *minted) serverFromFiles(dir string) error {
	root, err := loadRoot(m.c)
	if err != nil {
		return err
	}
	if m.sealed, err = recipients(m.c); err != nil {
		return err
	}
	validity, err := daysOf(m.c)
	if err != nil {
		return err
	}
	return m.server(root, dir, validity)
}

// server makes the control plane's certificate under the root, not under the
// issuing CA, which may only speak for hosts of the suffix.
func (m *minted) server(root *pki.CA, dir string, validity time.Duration) error {
	names, err := serverNames(m.c.StringSlice("server"))
	if err != nil {
		return err
	}
	key, err := pki.GenerateKey(pki.AlgorithmP256)
	if err != nil {
		return err
	}
	cert, err := root.IssueServer(names, key.Crypto().Public(), m.now, validity)
	if err != nil {
		return fmt.Errorf("issue server certificate: %w", err)
	}
	if err := m.writeKey(filepath.Join(dir, "server.key.pem"), key); err != nil {
		return err
	}
	m.write(filepath.Join(dir, "server.cert.pem"), cert, 0o644)
	return nil
}

func keygenAll(c *cli.Context) error {
	dir := c.String("dir")
	if _, err := serverNames(c.StringSlice("server")); err != nil {
		return err
	}
	if !c.IsSet("trust-file") {
		if err := c.Set("trust-file", filepath.Join(dir, "trust.json")); err != nil {
			return err
		}
	}
	orgRoot := "org-root.key"
	if c.IsSet("recipient") || c.IsSet("recipients-file") {
		orgRoot = "org-root.age"
	}
	return made(c, func(m *minted) error { return m.all(dir, orgRoot) })
}

// all makes everything that a new fleet needs.
func (m *minted) all(dir, orgRoot string) error {
	root, err := m.fleetCA(dir)
	if err != nil {
		return err
	}
	for _, step := range []func() error{
		func() error { return m.release(filepath.Join(dir, "release.key"), m.c.String("algorithm")) },
		func() error { return m.orgRoot(filepath.Join(dir, orgRoot)) },
		func() error { return m.cache(filepath.Join(dir, "cache.key"), m.c.String("name")) },
		func() error { return m.server(root, dir, certificateDays*day) },
		func() error {
			return m.operator(root, m.c.String("cn"), filepath.Join(dir, "operator.pem"), filepath.Join(dir, "operator.key"),
				certificateDays*day)
		},
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}
