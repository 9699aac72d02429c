package cp

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"sync"
	"time"

	"nixfleet/pki"
)

// clientCAs is the bundle that client certificates must chain to.
type clientCAs struct {
	pool  *x509.CertPool
	certs []*x509.Certificate
}

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
		return clientCAs{pool, certs}, nil
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
		return func(err error) { cfg.Log.Error().Err(err).Msg(what + " not reloaded; the last good one stays in use") }
	}
	return &files{
		serverCert: newReloaded(stays("server certificate"), loadServerCertificate(cfg.TLSCert, cfg.TLSKey), cfg.TLSCert,
			cfg.TLSKey),
		clientCAs: newReloaded(stays("client CA"), loadClientCAs(cfg.ClientCA), cfg.ClientCA),
		trust:     newReloaded(stays("trust file"), loadTrust(cfg), cfg.TrustFile),
		issuing:   newReloaded(stays("issuing CA"), cfg.loadCA, cfg.FleetCACert, cfg.FleetCAKey, cfg.TPMPubkey),
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

// reloaded is a value read from files and read again when one of them has
// changed. The files are looked at on every use: a key that was taken out must not be
// believed a moment longer. A file that has become unreadable leaves the last good
// value in force; get returns the error, and it is logged once.
type reloaded[T any] struct {
	paths []string
	load  func() (T, error)
	tell  func(error)

	mu         sync.Mutex
	stamps     []fileStamp
	value      T
	have       bool
	told       string // the last complaint, until a load succeeds
	generation uint64
}

type fileStamp struct {
	size     int64
	modified time.Time
	file     os.FileInfo
}

func newReloaded[T any](tell func(error), load func() (T, error), paths ...string) *reloaded[T] {
	return &reloaded[T]{paths: paths, load: load, tell: tell}
}

// same reports whether the file is as it was, or still is not there.
func (s fileStamp) same(before fileStamp) bool {
	if s.file == nil || before.file == nil {
		return s.file == before.file
	}
	return s.size == before.size && s.modified.Equal(before.modified) && os.SameFile(s.file, before.file)
}

// get returns the value and its generation, which grows with each reload.
func (r *reloaded[T]) get() (T, uint64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	stamps := make([]fileStamp, 0, len(r.paths))
	changed := !r.have
	for i, path := range r.paths {
		var s fileStamp
		if info, err := os.Stat(path); err == nil {
			s = fileStamp{info.Size(), info.ModTime(), info}
		}
		stamps = append(stamps, s)
		changed = changed || !s.same(r.stamps[i])
	}
	if !changed {
		return r.value, r.generation, nil
	}
	value, err := r.load()
	if err != nil {
		if r.have && err.Error() != r.told {
			r.told = err.Error()
			r.tell(err)
		}
		return r.value, r.generation, err
	}
	r.told = ""
	r.value, r.stamps, r.have = value, stamps, true
	r.generation++
	return value, r.generation, nil
}
