package pki

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

const (
	// MaxDocument is the largest document that is read, in bytes. The full
	// manifest of 100,000 hosts has 16 MB.
	MaxDocument = 64 << 20
	// MaxDepth is the deepest nesting of arrays and objects.
	MaxDepth = 127
	// MaxMembers is the largest number of members of one object: ten times the
	// hosts of a large fleet. Sorting more takes gigabytes before any signature is
	// looked at.
	MaxMembers = 1 << 20
)

// What makes a document refused; test with errors.Is.
var (
	ErrSyntax       = errors.New("not JSON")
	ErrDuplicateKey = errors.New("duplicate key")
	ErrEncoding     = errors.New("invalid UTF-8 or lone surrogate")
	ErrNumber       = errors.New("number that a double cannot hold exactly")
	ErrDepth        = errors.New("nested too deep")
	ErrSize         = errors.New("document too large")
)

// Canonicalize returns the RFC 8785 form of one JSON document. It refuses what
// RFC 8785 leaves open or lets through: duplicate keys, lone surrogates, bare
// integers beyond 2^53 (two of them could have one canonical form), numbers that
// overflow, nesting beyond MaxDepth, objects beyond MaxMembers, and documents
// beyond MaxDocument. The input is not changed.
func Canonicalize(in []byte) ([]byte, error) {
	if err := refuse(in); err != nil {
		return nil, err
	}
	out, err := jsontext.AppendFormat(make([]byte, 0, len(in)), in,
		jsontext.CanonicalizeRawInts(true), jsontext.CanonicalizeRawFloats(true), jsontext.ReorderRawObjects(true))
	if err != nil {
		return nil, syntaxError(err)
	}
	return out, nil
}

// CanonicalHash is the lower-case hex SHA-256 of a document's canonical form.
func CanonicalHash(in []byte) (string, error) {
	canonical, err := Canonicalize(in)
	if err != nil {
		return "", err
	}
	return HashHex(canonical), nil
}

// HashHex is the lower-case hex SHA-256 of b as it stands.
func HashHex(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// Marshal returns the canonical bytes of a Go value. Nil slices are written as
// [] and nil maps as {}.
func Marshal(v any) ([]byte, error) {
	doc, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode %T: %w", v, err)
	}
	return Canonicalize(doc)
}

// refuse finds what the canonicaliser would let through. It walks the bytes
// once and expects nothing of them; syntax is the canonicaliser's.
func refuse(in []byte) error {
	if len(in) > MaxDocument {
		return fmt.Errorf("%w: %d bytes, at most %d", ErrSize, len(in), MaxDocument)
	}
	if !utf8.Valid(in) {
		return ErrEncoding
	}
	if bytes.HasPrefix(in, []byte("version https://git-lfs.github.com/spec/")) {
		return fmt.Errorf("%w: it is a Git LFS pointer and not the file; take it out of Git LFS (.gitattributes)", ErrSyntax)
	}
	var open nesting
	for i := 0; i < len(in); i++ {
		switch c := in[i]; {
		case c == '"':
			i = stringEnd(in, i)
		case c == '[' || c == '{':
			if err := open.enter(); err != nil {
				return err
			}
		case c == ':':
			if err := open.member(); err != nil {
				return err
			}
		case c == ']' || c == '}':
			open.depth--
		case c == '-' || c >= '0' && c <= '9':
			start := i
			i = numberEnd(in, i)
			if err := refuseNumber(in[start : i+1]); err != nil {
				return err
			}
		}
	}
	return nil
}

// nesting counts the arrays and objects that are open, and the members of each.
// It is below zero when more have ended than begun, which is not JSON.
type nesting struct {
	depth   int
	members [MaxDepth + 1]int // of the object that is open at each depth
}

func (n *nesting) enter() error {
	if n.depth++; n.depth > MaxDepth {
		return fmt.Errorf("%w: more than %d levels", ErrDepth, MaxDepth)
	}
	if n.depth > 0 {
		n.members[n.depth] = 0
	}
	return nil
}

func (n *nesting) member() error {
	if n.depth <= 0 {
		return nil
	}
	if n.members[n.depth]++; n.members[n.depth] > MaxMembers {
		return fmt.Errorf("%w: an object of more than %d members", ErrSize, MaxMembers)
	}
	return nil
}

// stringEnd is where the string that begins at i ends: its closing quote, or the
// end of the document.
func stringEnd(in []byte, i int) int {
	for i++; i < len(in) && in[i] != '"'; i++ {
		if in[i] == '\\' {
			i++
		}
	}
	return i
}

// numberEnd is the last byte of the number that begins at i.
func numberEnd(in []byte, i int) int {
	for i+1 < len(in) && strings.IndexByte("+-.0123456789eE", in[i+1]) >= 0 {
		i++
	}
	return i
}

// isJSON tells whether the grammar accepts a document, whatever Canonicalize says against its values.
func isJSON(in []byte) bool {
	return jsontext.Value(in).IsValid(jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
}

const maxExactInteger = 1 << 53

func refuseNumber(token []byte) error {
	integer := true
	for _, c := range token {
		integer = integer && (c == '-' || c >= '0' && c <= '9')
	}
	if integer && len(token) < 16 {
		return nil
	}
	f, err := strconv.ParseFloat(string(token), 64)
	if errors.Is(err, strconv.ErrRange) && math.IsInf(f, 0) {
		return fmt.Errorf("%w: overflow", ErrNumber)
	}
	if err != nil && !errors.Is(err, strconv.ErrRange) {
		return fmt.Errorf("%w: malformed number", ErrSyntax)
	}
	if !integer {
		return nil
	}
	if n, err := strconv.ParseInt(string(token), 10, 64); err != nil || n > maxExactInteger || n < -maxExactInteger {
		return fmt.Errorf("%w: integer beyond 2^53", ErrNumber)
	}
	return nil
}

func syntaxError(err error) error {
	switch {
	case errors.Is(err, jsontext.ErrDuplicateName):
		return fmt.Errorf("%w: %w", ErrDuplicateKey, err)
	case strings.Contains(err.Error(), "surrogate"):
		return fmt.Errorf("%w: %w", ErrEncoding, err)
	}
	return fmt.Errorf("%w: %w", ErrSyntax, err)
}
