package protocol

import (
	"strings"
	"unicode"
)

const ellipsis = " …"

// Clip makes a text of the other side fit to be kept, logged and shown: one line of printable
// characters, of at most limit bytes.
func Clip(text string, limit int) string {
	cut := len(text) > limit
	text = strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) {
			return ' '
		}
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(text[:min(len(text), limit)], ""))
	if cut && limit > len(ellipsis) {
		return strings.ToValidUTF8(text[:min(len(text), limit-len(ellipsis))], "") + ellipsis
	}
	return text
}
