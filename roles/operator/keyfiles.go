package operator

import (
	"fmt"
	"os"
	"path/filepath"

	"nixfleet/pki"
	"nixfleet/roles/command"
)

// secret reads a small private file, and opens one that is encrypted.
func (k *keyring) secret(path string) ([]byte, error) {
	data, err := command.ReadFile(path, command.SmallFile)
	if err != nil {
		return nil, command.Hinted(fmt.Errorf("read key: %w", err), "nixfleet keygen --help lists the keys that it makes")
	}
	if !pki.IsSealed(data) {
		return data, nil
	}
	if k.identity == "" {
		return nil, command.Hinted(fmt.Errorf("key %s is encrypted", path),
			"give --identity FILE, an age identity or an ssh private key")
	}
	return k.open(data, path)
}

// key reads a private key.
func (k *keyring) key(path string) (*pki.PrivateKey, error) {
	data, err := k.secret(path)
	if err != nil {
		return nil, err
	}
	key, err := pki.ParsePrivateKey(data)
	if err != nil {
		return nil, command.Hinted(fmt.Errorf("read key %s: %w", path, err),
			"it must be the private half, without a passphrase; to store a key encrypted, use age")
	}
	return key, nil
}

// signingKey is key for one that is about to sign: one that every user of the machine can read is refused, as it is
// in the Nix store.
func (k *keyring) signingKey(path string) (*pki.PrivateKey, error) {
	key, err := k.key(path)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(path)
	if path == "-" || err != nil || !info.Mode().IsRegular() || info.Mode().Perm()&0o004 == 0 {
		return key, nil
	}
	if data, err := command.ReadFile(path, command.SmallFile); err == nil && pki.IsSealed(data) {
		return key, nil
	}
	return nil, command.Hinted(
		fmt.Errorf("key %s has mode %04o: every user of this machine can read it", path, info.Mode().Perm()),
		"chmod 600 %s; if it was in the Nix store, everybody may have read it: make another key", path)
}

// clear gives a program that knows no encryption the path of a key: the file itself, or while work runs a private
// copy of what it seals.
func (k *keyring) clear(path string, work func(path string) error) error {
	if path == "" {
		return work("")
	}
	given, err := command.ReadFile(path, command.SmallFile)
	if err != nil {
		return fmt.Errorf("read key: %w", err)
	}
	if !pki.IsSealed(given) {
		return work(path)
	}
	data, err := k.secret(path)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "nixfleet-key-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	copied := filepath.Join(dir, "key")
	if err := os.WriteFile(copied, data, 0o600); err != nil {
		return err
	}
	return work(copied)
}

// keyFiles opens the keys of a release: release.Keys.
type keyFiles struct{ ring *keyring }

// SigningKey reads the release key.
func (k keyFiles) SigningKey(path string) (*pki.PrivateKey, error) { return k.ring.signingKey(path) }

// Check opens a key that is needed later.
func (k keyFiles) Check(path string) error {
	_, err := k.ring.secret(path)
	return err
}

// Clear gives work a key without encryption.
func (k keyFiles) Clear(path string, work func(path string) error) error {
	return k.ring.clear(path, work)
}

// Trust reads a trust file.
func (k keyFiles) Trust(path string) (*pki.Trust, []string, error) { return readTrust(path) }
