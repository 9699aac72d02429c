package operator

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"nixfleet/pki"
	"nixfleet/roles/command"
)

// An ssh key with a passphrase opens what is encrypted to it; the passphrase is
// asked for once, and not at all for what is encrypted to somebody else.
func TestIdentityWithPassphrase(t *testing.T) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKeyWithPassphrase(private, "jo", []byte("open sesame"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "id_ed25519")
	if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	seal := func(key ed25519.PublicKey, text string) []byte {
		to, err := pki.ParseRecipients([]string{pki.FormatHostKey(key, "jo")})
		if err != nil {
			t.Fatal(err)
		}
		sealed, err := pki.Seal([]byte(text), to...)
		if err != nil {
			t.Fatal(err)
		}
		return sealed
	}
	asked, phrase, refusal := 0, "open sesame", error(nil)
	k := keyring{identity: path, ask: func(string) ([]byte, error) { asked++; return []byte(phrase), refusal }}

	stranger, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.open(seal(stranger, "x"), "x.age"); !errors.Is(err, pki.ErrSealed) || asked != 0 {
		t.Errorf("encrypted to somebody else: %v, asked %d times", err, asked)
	}
	phrase = "guess"
	if _, err := k.open(seal(public, "x"), "x.age"); err == nil || !strings.Contains(command.HintOf(err), "passphrase") {
		t.Errorf("wrong passphrase: %v (hint %q)", err, command.HintOf(err))
	}
	refusal = context.Canceled
	if _, err := k.open(seal(public, "x"), "x.age"); command.ExitCode(err) != 130 {
		t.Errorf("interrupted at the prompt: %v, exit code %d", err, command.ExitCode(err))
	}
	phrase, refusal, asked = "open sesame", nil, 0
	for _, text := range []string{"release key", "cache key"} {
		got, err := k.open(seal(public, text), "x.age")
		if err != nil || string(got) != text {
			t.Errorf("open %s: %q, %v", text, got, err)
		}
	}
	if asked != 1 {
		t.Errorf("asked %d times for one passphrase", asked)
	}
}
