package pki

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"filippo.io/age/armor"
)

// maxSecret bounds keys, tokens and their sealed forms, in bytes.
const maxSecret = 1 << 20

// ErrSealed means that the data is encrypted and none of the identities opens it.
var ErrSealed = errors.New("encrypted to another key")

const ageHeader = "age-encryption.org/v1"

// IsSealed reports whether data is an age file, binary or armored.
func IsSealed(data []byte) bool {
	return bytes.HasPrefix(data, []byte(ageHeader)) || bytes.HasPrefix(bytes.TrimSpace(data), []byte(armor.Header))
}

// ParseIdentities reads an age identity file (AGE-SECRET-KEY lines and #
// comments) or an unencrypted ssh private key.
func ParseIdentities(data []byte) ([]age.Identity, error) {
	if bytes.Contains(data, []byte("PRIVATE KEY-----")) {
		id, err := agessh.ParseIdentity(data)
		if err != nil {
			return nil, fmt.Errorf("%w: ssh private key: %w", ErrKey, err)
		}
		return []age.Identity{id}, nil
	}
	ids, err := age.ParseIdentities(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("%w: age identities: %w", ErrKey, err)
	}
	return ids, nil
}

// ParseRecipients reads age1… recipients and ssh public keys, one a line;
// empty lines and # comments are passed over. Its errors quote no line that
// could be a private key in the wrong place.
func ParseRecipients(lines []string) ([]age.Recipient, error) {
	var out []age.Recipient
	for i, line := range lines {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		var r age.Recipient
		var err error
		switch {
		case strings.HasPrefix(line, "ssh-"):
			r, err = agessh.ParseRecipient(line)
		case strings.HasPrefix(line, "age1pq1"):
			r, err = age.ParseHybridRecipient(line)
		case strings.HasPrefix(line, "age1"):
			r, err = age.ParseX25519Recipient(line)
		default:
			return nil, fmt.Errorf("%w: recipient %d begins neither with age1 nor with ssh-", ErrKey, i+1)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: recipient %.24q: %w", ErrKey, line, err)
		}
		out = append(out, r)
	}
	return out, nil
}

// Seal encrypts to the recipients and armors the result.
func Seal(plaintext []byte, recipients ...age.Recipient) ([]byte, error) {
	var out bytes.Buffer
	armored := armor.NewWriter(&out)
	w, err := age.Encrypt(armored, recipients...)
	if err != nil {
		return nil, fmt.Errorf("encrypt: %w", err)
	}
	if _, err := w.Write(plaintext); err != nil {
		return nil, fmt.Errorf("encrypt: %w", err)
	}
	if err := errors.Join(w.Close(), armored.Close()); err != nil {
		return nil, fmt.Errorf("encrypt: %w", err)
	}
	return out.Bytes(), nil
}

// Open decrypts an age file of at most 1 MiB with the first identity that fits.
func Open(data []byte, identities ...age.Identity) ([]byte, error) {
	var in io.Reader = bytes.NewReader(data)
	if trimmed := bytes.TrimSpace(data); bytes.HasPrefix(trimmed, []byte(armor.Header)) {
		in = armor.NewReader(bytes.NewReader(trimmed))
	}
	r, err := age.Decrypt(in, identities...)
	if none := (*age.NoIdentityMatchError)(nil); errors.As(err, &none) {
		return nil, fmt.Errorf("decrypt: %w", ErrSealed)
	}
	if err != nil {
		return nil, fmt.Errorf("decrypt: %w", err)
	}
	plain, err := io.ReadAll(io.LimitReader(r, maxSecret+1))
	if err != nil {
		return nil, fmt.Errorf("decrypt: %w", err)
	}
	if len(plain) > maxSecret {
		return nil, fmt.Errorf("decrypt: %w", ErrSize)
	}
	return plain, nil
}

// ReadPrivateKey reads a key file of at most 1 MiB and opens it with the
// identities when it is sealed.
func ReadPrivateKey(path string, identities ...age.Identity) (*PrivateKey, error) {
	data, err := readBounded(path, maxSecret)
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	if IsSealed(data) {
		if len(identities) == 0 {
			return nil, fmt.Errorf("read key %s: %w", path, ErrSealed)
		}
		if data, err = Open(data, identities...); err != nil {
			return nil, fmt.Errorf("read key %s: %w", path, err)
		}
	}
	key, err := ParsePrivateKey(data)
	if err != nil {
		return nil, fmt.Errorf("read key %s: %w", path, err)
	}
	return key, nil
}

func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("read %s: %w", path, ErrSize)
	}
	return data, nil
}
