package agent

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"nixfleet/nixops/disk"
	"nixfleet/pki"
	"nixfleet/roles/protocol"
)

// identity is this host's key and its certificates.
//
// A new certificate does not replace the one in use at once. It lies beside it, as
// `FILE.next`, until one check-in with it was answered. The one that it then replaces is kept
// as `FILE.previous` for as long as it is valid: a lying control plane may have issued the new
// one and answered that check-in, and the honest one will refuse it.
type identity struct {
	hostname string
	certPath string
	key      *pki.PrivateKey // of the certificate
	host     *pki.PrivateKey // signs reports; nil when it cannot be read
	token    string          // file
	now      func() time.Time
	trust    func() (*pki.Trust, error)
	allowV1  bool // a v1 control plane issues certificates without a key identifier
}

// signer signs reports. It is nil when the host key cannot be read.
func (i *identity) signer() protocol.Signer {
	if i.host == nil {
		return nil
	}
	return i.host
}

func (i *identity) nextPath() string     { return i.certPath + ".next" }
func (i *identity) previousPath() string { return i.certPath + ".previous" }

// certificate is the one in use, read anew so that a renewal is used at once.
// It is nil while there is none.
func (i *identity) certificate() (*tls.Certificate, error) {
	cert, err := i.read(i.certPath)
	if err == nil && cert != nil && i.isOurs(cert.Leaf) && i.now().Before(cert.Leaf.NotAfter) {
		return cert, nil
	}
	if previous := i.valid(i.previousPath()); previous != nil {
		return previous, nil
	}
	return cert, err
}

// read gives nil when there is no such file.
func (i *identity) read(path string) (*tls.Certificate, error) {
	text, err := disk.ReadLinked(path, pki.MaxDocument)
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
		return nil, fmt.Errorf("%s holds no certificate", path)
	}
	if out.Leaf, err = x509.ParseCertificate(out.Certificate[0]); err != nil {
		return nil, fmt.Errorf("read certificate: %w", err)
	}
	return out, nil
}

// valid is the certificate of a file when it is for our key and valid now; nil otherwise.
func (i *identity) valid(path string) *tls.Certificate {
	cert, err := i.read(path)
	if err != nil || cert == nil || !i.isOurs(cert.Leaf) || !i.now().Before(cert.Leaf.NotAfter) || i.early(cert.Leaf) {
		return nil
	}
	return cert
}

// isOurs reports whether a certificate is for this host's key.
func (i *identity) isOurs(cert *x509.Certificate) bool {
	public, ok := i.key.Crypto().Public().(interface{ Equal(crypto.PublicKey) bool })
	return ok && public.Equal(cert.PublicKey)
}

// early reports whether a certificate begins later than now, beyond what clocks differ by.
func (i *identity) early(cert *x509.Certificate) bool {
	return cert.NotBefore.After(i.now().Add(pki.ClockSlack))
}

// usable is the certificate in use when it is valid now.
func (i *identity) usable() *tls.Certificate {
	cert, err := i.certificate()
	if err != nil || cert == nil || !i.isOurs(cert.Leaf) || !i.now().Before(cert.Leaf.NotAfter) {
		return nil
	}
	return cert
}

// dueForRenewal reports whether less than fraction of the certificate's life is left.
func (i *identity) dueForRenewal(fraction float64) bool {
	cert := i.usable()
	if cert == nil {
		return false
	}
	life := cert.Leaf.NotAfter.Sub(cert.Leaf.NotBefore)
	return float64(cert.Leaf.NotAfter.Sub(i.now())) < fraction*float64(life)
}

// keepOnTrial puts a certificate beside the one in use, until accept or discard.
func (i *identity) keepOnTrial(text string) error {
	return disk.Replace(i.nextPath(), []byte(text), 0o600)
}

// onTrial is the certificate that was not accepted yet; nil when there is none that is
// valid now.
func (i *identity) onTrial() *tls.Certificate { return i.valid(i.nextPath()) }

// accept puts the certificate on trial in the place of the one in use, which is kept for
// as long as it is valid. One that was kept before and is still valid stays: several
// renewals in a row must not push out the last good certificate.
func (i *identity) accept() error {
	if i.valid(i.previousPath()) == nil && i.valid(i.certPath) != nil {
		text, err := disk.ReadLinked(i.certPath, pki.MaxDocument)
		if err == nil {
			err = disk.Replace(i.previousPath(), text, 0o600)
		}
		if err != nil {
			return fmt.Errorf("keep the previous certificate: %w", err)
		}
	}
	return i.move(i.nextPath())
}

// restore puts the previous certificate in use again.
func (i *identity) restore() error { return i.move(i.previousPath()) }

func (i *identity) move(from string) error {
	// A directory gives way to no file by itself.
	if info, err := os.Lstat(i.certPath); err == nil && info.IsDir() {
		if err := os.Rename(i.certPath, i.certPath+".unfit"); err != nil {
			return fmt.Errorf("set aside what is not a certificate: %w", err)
		}
	}
	if err := os.Rename(from, i.certPath); err != nil {
		return fmt.Errorf("replace certificate: %w", err)
	}
	return disk.SyncDir(filepath.Dir(i.certPath))
}

// discard forgets the certificate on trial.
func (i *identity) discard() error {
	if err := os.Remove(i.nextPath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("discard certificate: %w", err)
	}
	return nil
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
	data, err := disk.ReadLinked(i.token, pki.MaxDocument)
	if err != nil {
		return nil, fmt.Errorf("read bootstrap token: %w", err)
	}
	if pki.IsSealed(data) {
		keyText, err := disk.ReadLinked(sshKeyFile, pki.MaxDocument)
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
