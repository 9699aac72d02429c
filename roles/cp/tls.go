package cp

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"

	"nixfleet/pki"
)

// clientCAs is the bundle that client certificates must chain to.
type clientCAs struct{ pool *x509.CertPool }

func loadClientCAs(path string) func() (clientCAs, error) {
	return func() (clientCAs, error) {
		if path == "" {
			return clientCAs{}, nil
		}
		bundle, err := os.ReadFile(path)
		if err != nil {
			return clientCAs{}, fmt.Errorf("client CA: %w", err)
		}
		certs, err := pki.ParseCertificates(bundle)
		if err != nil {
			return clientCAs{}, fmt.Errorf("client CA %s: %w", path, err)
		}
		pool := x509.NewCertPool()
		for _, c := range certs {
			pool.AddCert(c)
		}
		return clientCAs{pool}, nil
	}
}

func loadServerCertificate(cert, key string) func() (*tls.Certificate, error) {
	return func() (*tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("server certificate: %w", err)
		}
		return &pair, nil
	}
}

// files are what the control plane reads from disk and reads again when it changes.
type files struct {
	serverCert *reloaded[*tls.Certificate]
	clientCAs  *reloaded[clientCAs]
	trust      *reloaded[*pki.Trust]
	issuing    *reloaded[*pki.CA]
}

func newFiles(cfg *Config) *files {
	stays := func(what string) func(error) {
		return func(err error) { cfg.Log.Error().Err(err).Msg(what + " not reloaded, the last good one stays") }
	}
	return &files{
		serverCert: newReloaded(stays("server certificate"), loadServerCertificate(cfg.TLSCert, cfg.TLSKey), cfg.TLSCert, cfg.TLSKey),
		clientCAs:  newReloaded(stays("client CA"), loadClientCAs(cfg.ClientCA), cfg.ClientCA),
		trust:      newReloaded(stays("trust file"), loadTrust(cfg), cfg.TrustFile),
		issuing:    newReloaded(stays("issuing CA"), cfg.loadCA, cfg.FleetCACert, cfg.FleetCAKey, cfg.TPMPubkey),
	}
}

func loadTrust(cfg *Config) func() (*pki.Trust, error) {
	return func() (*pki.Trust, error) {
		t, warnings, err := pki.LoadTrust(cfg.TrustFile)
		for _, w := range warnings {
			cfg.Log.Warn().Str("file", cfg.TrustFile).Msg("trust file: " + w)
		}
		return t, err
	}
}

// read reads what has changed.
func (f *files) read() error {
	_, _, certErr := f.serverCert.get()
	_, _, clientErr := f.clientCAs.get()
	_, _, trustErr := f.trust.get()
	_, _, issuingErr := f.issuing.get()
	return cmp.Or(certErr, clientErr, trustErr, issuingErr)
}

// tlsConfig takes certificate and client CAs anew at each handshake. What a
// resumed session once showed is not trusted by itself: every request verifies
// its certificate against the CAs of that moment, see identify.
func (f *files) tlsConfig() *tls.Config {
	base := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: nil}
	base.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		cert, _, err := f.serverCert.get()
		if cert == nil {
			return nil, err
		}
		cas, _, _ := f.clientCAs.get() // the last good ones, if they cannot be read
		config := &tls.Config{
			MinVersion:   tls.VersionTLS12,
			Certificates: []tls.Certificate{*cert},
			ClientCAs:    cas.pool,
			ClientAuth:   tls.VerifyClientCertIfGiven,
		}
		if cas.pool == nil {
			config.ClientAuth = tls.NoClientCert
		}
		// Tickets are under the keys of base, which rotate.
		return config, nil
	}
	return base
}
