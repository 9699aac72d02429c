package pki

import (
	"errors"
	"regexp"
)

// ErrNonce means that a text does not have the form of a nonce.
var ErrNonce = errors.New("not a nonce of 32 lower-case hexadecimal digits")

var nonceForm = regexp.MustCompile(`^[0-9a-f]{32}$`)

// ValidNonce reports whether a nonce has the form of those that NewNonce makes. Others are taken nowhere: one of no
// digits, or of a few, could be meant by two tokens.
func ValidNonce(nonce string) bool { return nonceForm.MatchString(nonce) }
