package journal

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"nixfleet/nixops/disk"
	"nixfleet/pki"
)

const (
	// largest bounds a document, in bytes.
	largest = 4 << 20
	// version is that of the form of all documents.
	version = 1
)

// ErrUnfit means that a document is there and cannot be believed: it is truncated, of
// another version, changed or writable by another user, or not a regular file.
var ErrUnfit = errors.New("state file is damaged or foreign")

// envelope is how documents lie on disk: with the version of their form and a checksum
// over the body's bytes.
type envelope struct {
	Version int            `json:"version" shape:"R"`
	SHA256  string         `json:"sha256" shape:"R"`
	Body    jsontext.Value `json:"body" shape:"R"`
}

// Write puts v on disk as a whole: file and directory are flushed when it returns.
func (d Directory) Write(name string, v any) error {
	doc, err := Encode(v)
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return disk.Replace(d.Path(name), doc, 0o600)
}

// Encode makes the bytes of a document, which Decode reads.
func Encode(v any) ([]byte, error) {
	// A program's words may be in it: what is not UTF-8 must not keep a step from being
	// written ahead.
	body, err := json.Marshal(v, jsontext.AllowInvalidUTF8(true))
	if err == nil {
		body, err = pki.Canonicalize(body)
	}
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(body)
	doc, err := json.Marshal(envelope{version, hex.EncodeToString(sum[:]), body})
	return append(doc, '\n'), err
}

// Read gives fs.ErrNotExist when there is nothing and ErrUnfit when what is there cannot be
// believed.
func (d Directory) Read(name string, v any) error {
	doc, err := disk.Read(d.Path(name), largest)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return err
	case errors.Is(err, disk.ErrNotRegular), errors.Is(err, disk.ErrSize):
		return fmt.Errorf("%w: %w", ErrUnfit, err)
	case err != nil:
		return err
	}
	if err := OwnOnly(d.Path(name)); err != nil {
		return fmt.Errorf("%w: %w", ErrUnfit, err)
	}
	return Decode(doc, v)
}

// Decode reads a document's bytes into v. It refuses with ErrUnfit.
func Decode(doc []byte, v any) error {
	var e envelope
	if err := pki.Decode(doc, &e); err != nil {
		return fmt.Errorf("%w: %w", ErrUnfit, err)
	}
	if e.Version != version {
		return fmt.Errorf("%w: version %d, only %d is known", ErrUnfit, e.Version, version)
	}
	body, err := pki.Canonicalize(e.Body)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnfit, err)
	}
	if sum := sha256.Sum256(body); hex.EncodeToString(sum[:]) != e.SHA256 {
		return fmt.Errorf("%w: the checksum does not match", ErrUnfit)
	}
	if err := pki.Decode(body, v); err != nil {
		return fmt.Errorf("%w: %w", ErrUnfit, err)
	}
	return nil
}

// Optional reads a document that may be missing. A document that cannot be believed is set
// aside, handed to warn and counts as missing.
func Optional[T any](dir Directory, name string, warn func(error)) *T {
	v := new(T)
	err := dir.Read(name, v)
	switch {
	case err == nil:
		return v
	case errors.Is(err, fs.ErrNotExist):
	default:
		warn(err)
		if errors.Is(err, ErrUnfit) {
			if _, err := dir.SetAside(name); err != nil {
				warn(err)
			}
		}
	}
	return nil
}
