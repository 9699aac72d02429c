package operator

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"golang.org/x/crypto/ssh"
	"golang.org/x/term"

	"nixfleet/pki"
	"nixfleet/roles/command"
)

// keyring opens what is encrypted to the operator. An ssh key with a passphrase
// is the rule on workstations: the passphrase is asked for once for each key, and
// only when the key is the one that fits.
//
// A command has one: `release` opens the release key when it begins, and the cache key after an hour of building, when
// nobody is there to be asked again.
type keyring struct {
	identity string // file that opens what is encrypted; "" when none was named
	ask      func(path string) ([]byte, error)

	mu    sync.Mutex
	known []age.Identity
}

func newKeyring(identity string) *keyring { return &keyring{identity: identity, ask: askPassphrase} }

// open decrypts sealed, which was read from path.
func (k *keyring) open(sealed []byte, path string) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var asking error
	identities := k.known
	if identities == nil {
		var err error
		if identities, err = k.read(k.identity, &asking); err != nil {
			return nil, err
		}
	}
	data, err := pki.Open(sealed, identities...)
	switch {
	case asking != nil:
		return nil, asking
	case errors.Is(err, pki.ErrSealed):
		return nil, command.Hinted(fmt.Errorf("decrypt key %s: %w", path, err), "%s is not a recipient of this key",
			k.identity)
	case err != nil:
		return nil, command.Hinted(fmt.Errorf("decrypt key %s: %w", path, err), "was that the passphrase of --identity %s?",
			k.identity)
	}
	k.known = identities
	return data, nil
}

// read reads an identity file. Why a passphrase could not be had is left in
// asking, since age keeps the text of such an error only.
func (k *keyring) read(path string, asking *error) ([]age.Identity, error) {
	text, err := command.ReadFile(path, command.SmallFile)
	if err != nil {
		return nil, fmt.Errorf("read identity: %w", err)
	}
	found, err := pki.ParseIdentities(text)
	var locked *ssh.PassphraseMissingError
	switch {
	case err == nil:
		return found, nil
	case !errors.As(err, &locked):
		return nil, command.Hinted(fmt.Errorf("read identity %s: %w", path, err),
			"--identity is the private half: an age identity file or an ssh private key")
	case locked.PublicKey == nil:
		return nil, command.Hinted(fmt.Errorf("read identity %s: %w", path, err),
			"ssh-keygen -p -f %s writes it in OpenSSH's current format", path)
	}
	id, err := agessh.NewEncryptedSSHIdentity(locked.PublicKey, text, func() ([]byte, error) {
		var phrase []byte
		phrase, *asking = k.ask(path)
		return phrase, *asking
	})
	if err != nil {
		return nil, fmt.Errorf("read identity %s: %w", path, err)
	}
	return []age.Identity{id}, nil
}

// askPassphrase asks on the terminal, which standard input and output may not be.
func askPassphrase(path string) ([]byte, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return nil, command.Hinted(fmt.Errorf("identity %s has a passphrase, and there is no terminal to ask for it", path),
			"give an --identity without a passphrase, or decrypt the key yourself: age -d -i %s KEY", path)
	}
	defer tty.Close()
	fd := int(tty.Fd())
	before, err := term.GetState(fd)
	if err != nil {
		return nil, fmt.Errorf("ask for the passphrase of %s: %w", path, err)
	}
	fmt.Fprintf(tty, "passphrase of %s: ", path)
	defer fmt.Fprintln(tty)
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(interrupted)
	type answer struct {
		phrase []byte
		err    error
	}
	typed := make(chan answer, 1)
	go func() {
		phrase, err := term.ReadPassword(fd)
		typed <- answer{phrase, err}
	}()
	select {
	case a := <-typed:
		return a.phrase, a.err
	case <-interrupted:
		// A terminal that shows nothing of what is typed must not stay behind.
		return nil, errors.Join(context.Canceled, term.Restore(fd, before))
	}
}
