package pki

import (
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"strings"

	"golang.org/x/crypto/ssh"
)

// ParseHostKey reads a host's public key from an OpenSSH line
// `ssh-ed25519 <base64 blob> [comment]`. A key that CheckKey refuses is refused.
func ParseHostKey(line string) (ed25519.PublicKey, error) {
	fields := strings.Fields(line)
	if len(fields) < 2 || strings.ContainsAny(strings.TrimSpace(line), "\r\n") {
		return nil, fmt.Errorf("%w: not an OpenSSH public key line", ErrKey)
	}
	if fields[0] != ssh.KeyAlgoED25519 {
		return nil, fmt.Errorf("%w: its type is %.20q, not %s", ErrKey, fields[0], ssh.KeyAlgoED25519)
	}
	blob, err := DecodeBase64(fields[1])
	if err != nil {
		return nil, fmt.Errorf("%w: damaged base64", ErrKey)
	}
	parsed, err := ssh.ParsePublicKey(blob)
	if err != nil || parsed.Type() != fields[0] {
		return nil, fmt.Errorf("%w: the encoded key is not of the type that the line names", ErrKey)
	}
	public, ok := parsed.(ssh.CryptoPublicKey).CryptoPublicKey().(ed25519.PublicKey)
	if !ok || len(public) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("%w: not an ed25519 key of 32 bytes", ErrKey)
	}
	if err := CheckKey(public); err != nil {
		return nil, err
	}
	return public, nil
}

// FormatHostKey is the OpenSSH line of a host's key, without its end; the
// comment may be empty.
func FormatHostKey(public ed25519.PublicKey, comment string) string {
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		return ""
	}
	return strings.Join(append(strings.Fields(string(ssh.MarshalAuthorizedKey(key))), strings.Fields(comment)...), " ")
}

// Fingerprint names a host's key in a bootstrap token: base64 of SHA-256 over
// the 32 raw bytes. It is not what `ssh-keygen -lf` prints, which hashes the
// whole OpenSSH blob.
func Fingerprint(public ed25519.PublicKey) string {
	sum := sha256.Sum256(public)
	return base64.StdEncoding.EncodeToString(sum[:])
}

// LooksLikeSSHFingerprint recognises what `ssh-keygen -lf` prints: the word
// SHA256: and base64 without padding, alone or inside the whole line.
func LooksLikeSSHFingerprint(s string) bool {
	for _, word := range strings.Fields(s) {
		if strings.HasPrefix(word, "SHA256:") || strings.HasPrefix(word, "MD5:") {
			return true
		}
	}
	return false
}

// SameKey compares two host keys in constant time. Keys of no length are never
// the same.
func SameKey(a, b ed25519.PublicKey) bool {
	return len(a) == ed25519.PublicKeySize && subtle.ConstantTimeCompare(a, b) == 1
}
