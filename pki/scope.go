package pki

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"path"
	"slices"
)

// Scope is what the holder of an operator's certificate may do. It stands in an extension of the
// certificate that is not critical, so that a control plane of v1 ignores it. A certificate without
// one may do everything.
type Scope struct {
	Channels []string `json:"channels" shape:"D"` // globs of path.Match; empty: every channel
	Verbs    []string `json:"verbs" shape:"D"`    // of Verbs; empty: all of them
}

// What an operator does, in one word each.
const (
	VerbRead   = "read"
	VerbPause  = "pause"
	VerbResume = "resume"
	VerbCancel = "cancel"
	VerbRetry  = "retry"
	VerbPoke   = "poke"
	VerbRevoke = "revoke" // hosts; operators are revoked with an unscoped certificate only
)

// Verbs are those that a scope may name.
var Verbs = []string{VerbRead, VerbPause, VerbResume, VerbCancel, VerbRetry, VerbPoke, VerbRevoke}

// ErrScope means that a scope cannot be read, or says what is not known here.
var ErrScope = errors.New("unreadable scope")

// maxScope bounds the text of a scope, in bytes.
const maxScope = 4 << 10

// scopeID names the extension: the object identifier that is made of a UUID (ITU-T X.667).
var scopeID = asn1.ObjectIdentifier{2, 25, 1735921934, 1164, 19011, 1}

// Check is ErrScope for a scope that says something unknown: a limit that is not understood must
// not be taken for none.
func (s *Scope) Check() error {
	for _, glob := range s.Channels {
		if _, err := path.Match(glob, ""); err != nil || glob == "" {
			return fmt.Errorf("%w: channel %.80q is not a pattern", ErrScope, glob)
		}
	}
	for _, verb := range s.Verbs {
		if !slices.Contains(Verbs, verb) {
			return fmt.Errorf("%w: %.80q is not a verb; there are %v", ErrScope, verb, Verbs)
		}
	}
	return nil
}

// AllowsVerb reports whether the scope has the verb. A nil scope has every one.
func (s *Scope) AllowsVerb(verb string) bool {
	return s == nil || len(s.Verbs) == 0 || slices.Contains(s.Verbs, verb)
}

// AllowsChannel reports whether the scope has the channel. A nil scope has every one.
func (s *Scope) AllowsChannel(channel string) bool {
	if s == nil || len(s.Channels) == 0 {
		return true
	}
	return slices.ContainsFunc(s.Channels, func(glob string) bool {
		ok, err := path.Match(glob, channel)
		return ok && err == nil
	})
}

// extension is the scope in a certificate: its canonical JSON as a UTF8String.
func (s *Scope) extension() (pkix.Extension, error) {
	if err := s.Check(); err != nil {
		return pkix.Extension{}, err
	}
	text, err := Marshal(s)
	if err != nil {
		return pkix.Extension{}, err
	}
	value, err := asn1.MarshalWithParams(string(text), "utf8")
	return pkix.Extension{Id: scopeID, Value: value}, err
}

// ScopeOf reads the scope of a certificate, nil when it has none.
func ScopeOf(cert *x509.Certificate) (*Scope, error) {
	var found *Scope
	for _, extension := range cert.Extensions {
		if !extension.Id.Equal(scopeID) {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("%w: it stands there twice", ErrScope)
		}
		var text string
		rest, err := asn1.UnmarshalWithParams(extension.Value, &text, "utf8")
		if err != nil || len(rest) > 0 || len(text) > maxScope {
			return nil, ErrScope
		}
		found = &Scope{}
		if err := Decode([]byte(text), found); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrScope, err)
		}
		// A member that is not known here would be a limit that is not held.
		if again, err := Marshal(found); err != nil || !bytes.Equal(again, []byte(text)) {
			return nil, fmt.Errorf("%w: it has members that are not known", ErrScope)
		}
		if err := found.Check(); err != nil {
			return nil, err
		}
	}
	return found, nil
}
