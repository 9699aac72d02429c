package cp

import (
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

// tlsConfig takes certificate and client CAs anew at each handshake. What a
// resumed session once showed is not trusted by itself: every request verifies
// its certificate against the CAs of that moment, see identify.
func (s *server) tlsConfig() *tls.Config {
	base := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: nil}
	base.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		cert, _, err := s.serverCert.get()
		if cert == nil {
			return nil, err
		}
		cas, _, _ := s.clientCAs.get() // the last good ones, if they cannot be read
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
