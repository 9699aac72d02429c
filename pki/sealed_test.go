package pki

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"
	"golang.org/x/crypto/ssh"
)

func ageIdentity(t *testing.T) (identityFile []byte, recipient string) {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return []byte("# created for a test\n" + id.String() + "\n"), id.Recipient().String()
}

func TestSealAndOpen(t *testing.T) {
	ageFile, ageRecipient := ageIdentity(t)
	hybrid, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	host := seedKey(t, 0x33)
	hostFile, err := host.MarshalOpenSSH("")
	if err != nil {
		t.Fatal(err)
	}
	hostLine := FormatHostKey(host.Crypto().Public().(ed25519.PublicKey), "root@db-01")
	secret := []byte("the token")
	for name, c := range map[string]struct {
		recipients []string
		identity   []byte
	}{
		"age":            {[]string{"# the operator", "", " " + ageRecipient + " "}, ageFile},
		"age, hybrid":    {[]string{hybrid.Recipient().String()}, []byte(hybrid.String())},
		"ssh host key":   {[]string{hostLine}, hostFile},
		"one of several": {[]string{hostLine, ageRecipient}, ageFile},
	} {
		recipients, err := ParseRecipients(c.recipients)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		identities, err := ParseIdentities(c.identity)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		sealed, err := Seal(secret, recipients...)
		if err != nil || !IsSealed(sealed) || bytes.Contains(sealed, secret) {
			t.Errorf("%s: sealed as %s, %v", name, sealed, err)
			continue
		}
		if got, err := Open(append([]byte("\n"), sealed...), identities...); err != nil || !bytes.Equal(got, secret) {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
		strangerFile, _ := ageIdentity(t)
		stranger, err := ParseIdentities(strangerFile)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Open(sealed, stranger...); !errors.Is(err, ErrSealed) {
			t.Errorf("%s: a stranger opens it: %v", name, err)
		}
		for _, cut := range []int{1, 20, len(sealed) / 2, len(sealed) - 40} {
			if got, err := Open(sealed[:cut], identities...); err == nil {
				t.Errorf("%s: %d bytes of it open as %q", name, cut, got)
			}
		}
	}
	if _, err := Seal(secret); err == nil {
		t.Error("sealed to nobody")
	}
}

func TestOpenIsBounded(t *testing.T) {
	file, line := ageIdentity(t)
	recipients, err := ParseRecipients([]string{line})
	if err != nil {
		t.Fatal(err)
	}
	identities, err := ParseIdentities(file)
	if err != nil {
		t.Fatal(err)
	}
	for size, want := range map[int]error{maxSecret: nil, maxSecret + 1: ErrSize} {
		sealed, err := Seal(make([]byte, size), recipients...)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Open(sealed, identities...); !errors.Is(err, want) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

func TestParseRecipientsKeepsSecrets(t *testing.T) {
	file, _ := ageIdentity(t)
	secret := strings.Split(string(file), "\n")[1]
	for _, lines := range [][]string{{secret}, {"github:someone"}, {"age1nonsense"}, {"ssh-ed25519 nonsense"}} {
		_, err := ParseRecipients(lines)
		if !errors.Is(err, ErrKey) || strings.Contains(err.Error(), secret[:20]) {
			t.Errorf("%.12q…: %v", lines[0], err)
		}
	}
	if got, err := ParseRecipients([]string{"", "# nobody"}); err != nil || len(got) != 0 {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestParseIdentitiesRefuses(t *testing.T) {
	locked, err := ssh.MarshalPrivateKeyWithPassphrase(ciKey(t).Crypto(), "", []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	_, recipient := ageIdentity(t)
	for name, data := range map[string][]byte{
		"nothing":    nil,
		"passphrase": pemOf(t, locked.Type, locked.Bytes, nil),
		"recipient":  []byte(recipient),
		"damaged":    []byte("AGE-SECRET-KEY-1NONSENSE"),
	} {
		if _, err := ParseIdentities(data); !errors.Is(err, ErrKey) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestReadPrivateKey(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	org := orgKey(t)
	plain, err := org.MarshalPEM()
	if err != nil {
		t.Fatal(err)
	}
	file, line := ageIdentity(t)
	identities, err := ParseIdentities(file)
	if err != nil {
		t.Fatal(err)
	}
	recipients, err := ParseRecipients([]string{line})
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := Seal(plain, recipients...)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{write("plain", plain), write("sealed", sealed)} {
		if k, err := ReadPrivateKey(path, identities...); err != nil || k.Public() != org.Public() {
			t.Errorf("%s: %v, %v", path, k, err)
		}
	}
	if _, err := ReadPrivateKey(filepath.Join(dir, "sealed")); !errors.Is(err, ErrSealed) {
		t.Errorf("sealed without an identity: %v", err)
	}
	if _, err := ReadPrivateKey(write("big", make([]byte, maxSecret+1))); !errors.Is(err, ErrSize) {
		t.Errorf("oversized: %v", err)
	}
	if _, err := ReadPrivateKey(write("rubbish", []byte("rubbish"))); !errors.Is(err, ErrKey) {
		t.Errorf("rubbish: %v", err)
	}
	if _, err := ReadPrivateKey(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}
