package operator

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"nixfleet/nixops/disk"
	"nixfleet/pki"
	"nixfleet/roles/command"
)

// smallFile bounds keys, tokens, certificates and signatures; artifacts are
// bounded by pki.MaxDocument.
const smallFile = 1 << 20

// readFile reads a file of at most limit bytes; "-" is standard input.
func readFile(path string, limit int64) ([]byte, error) {
	f := os.Stdin
	if path != "-" {
		var err error
		if f, err = os.Open(path); err != nil {
			return nil, err
		}
		defer f.Close()
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("read %s: larger than %d bytes", path, limit)
	}
	return data, nil
}

// writeNew writes a whole file at once or not at all. Without force a file
// that exists is never touched, also when two of us run at the same time.
func writeNew(path string, data []byte, mode fs.FileMode, force bool) error {
	write := disk.Create
	if force {
		write = disk.Replace
	}
	err := write(path, data, mode)
	if errors.Is(err, fs.ErrExist) {
		return errExists(path)
	}
	return err
}

func errExists(path string) error {
	return command.Hinted(fmt.Errorf("%s exists", path), "give --force to replace it, after you have made sure that nobody needs the old one")
}

// readSecret reads a small private file; identity, when named, opens a sealed one.
func readSecret(path, identity string) ([]byte, error) {
	data, err := readFile(path, smallFile)
	if err != nil {
		return nil, command.Hinted(fmt.Errorf("read key: %w", err), "nixfleet keygen --help says which key is made how")
	}
	if !pki.IsSealed(data) {
		return data, nil
	}
	if identity == "" {
		return nil, command.Hinted(fmt.Errorf("key %s is encrypted", path), "give --identity FILE, an age identity or an ssh private key")
	}
	return theKeyring.open(data, path, identity)
}

// inTheClear gives a program that knows no encryption the path of a key: the
// file itself, or while work runs a private copy of what it seals.
func inTheClear(path, identity string, work func(path string) error) error {
	if path == "" {
		return work("")
	}
	given, err := readFile(path, smallFile)
	if err != nil {
		return fmt.Errorf("read key: %w", err)
	}
	if !pki.IsSealed(given) {
		return work(path)
	}
	data, err := readSecret(path, identity)
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

// readKey reads a private key; identity, when named, opens a sealed one.
func readKey(path, identity string) (*pki.PrivateKey, error) {
	data, err := readSecret(path, identity)
	if err != nil {
		return nil, err
	}
	key, err := pki.ParsePrivateKey(data)
	if err != nil {
		return nil, command.Hinted(fmt.Errorf("read key %s: %w", path, err), "it must be the private half, and without a passphrase: keys that rest are encrypted with age")
	}
	return key, nil
}

// signingKey is readKey for a key that is about to sign: one that every user
// of the machine can read is refused, as it is in the Nix store.
func signingKey(path, identity string) (*pki.PrivateKey, error) {
	key, err := readKey(path, identity)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(path)
	if path == "-" || err != nil || !info.Mode().IsRegular() || info.Mode().Perm()&0o004 == 0 {
		return key, nil
	}
	if data, err := readFile(path, smallFile); err == nil && pki.IsSealed(data) {
		return key, nil
	}
	return nil, command.Hinted(fmt.Errorf("key %s has mode %04o: every user of this machine can read it", path, info.Mode().Perm()),
		"chmod 600 %s; a key that lay in the Nix store is lost, make another one", path)
}
