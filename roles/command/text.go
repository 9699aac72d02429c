package command

import (
	"bytes"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// Plain makes text that came from elsewhere safe to show, in a terminal, a log
// or a page: it returns one line of valid UTF-8 in which nothing moves the
// cursor, changes a colour or turns the direction of reading. Control
// characters (C0, DEL, C1), bidirectional and other invisible characters
// become spaces; invalid bytes become U+FFFD.
func Plain(s string) string { return strings.Map(plain, s) }

// PlainLines is Plain for text of several lines: line ends and tabs stay.
func PlainLines(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return r
		}
		return plain(r)
	}, s)
}

func plain(r rune) rune {
	if !unicode.IsPrint(r) {
		return ' '
	}
	return r
}

// OrDash returns s made plain, or a dash where a table has nothing to say.
func OrDash(s *string) string {
	if s == nil || *s == "" {
		return "-"
	}
	return Plain(*s)
}

// OrNothing lists words for a sentence, and says "nothing" of an empty list.
func OrNothing(list []string) string {
	if len(list) == 0 {
		return "nothing"
	}
	return strings.Join(list, ", ")
}

// Plural counts things: "1 host", "3 hosts".
func Plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// Wrap breaks text at spaces into lines of at most width characters; every line
// after the first begins with indent. A line that begins with a space is a
// command to copy and stays whole.
func Wrap(text string, width int, indent string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if line[0] == ' ' {
			b.WriteString(line)
			continue
		}
		n := 0
		for i, word := range strings.SplitAfter(line, " ") {
			size := len([]rune(strings.TrimRight(word, " \n")))
			if i > 0 && n+size > width {
				b.WriteString("\n" + indent)
				n = 0
			}
			b.WriteString(word)
			n += len([]rune(word))
		}
	}
	return b.String()
}

// Short is the beginning of a hash, as lines for people show it.
func Short(hash string) string { return hash[:min(8, len(hash))] }

// ShellWord quotes what a shell would change; a leading ~/ stays as it is.
func ShellWord(s string) string {
	const harmless = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:@+,="
	head := ""
	if strings.HasPrefix(s, "~/") {
		head, s = "~/", s[2:]
	}
	if s != "" && s[0] != '#' && strings.Trim(s, harmless+"#") == "" {
		return head + s
	}
	return head + "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// VisibleJSON writes the characters of a JSON document that a terminal acts upon, or that turn the
// direction of reading, as escapes: whoever reads it raw is safe, and whoever decodes it gets the
// same values.
func VisibleJSON(doc []byte) []byte {
	if !bytes.ContainsFunc(doc, unsafe) {
		return doc
	}
	out := make([]byte, 0, len(doc)+64)
	for _, r := range string(doc) {
		switch {
		case !unsafe(r):
			out = utf8.AppendRune(out, r)
		case r <= 0xffff:
			out = fmt.Appendf(out, `\u%04x`, r)
		default:
			high, low := utf16.EncodeRune(r)
			out = fmt.Appendf(out, `\u%04x\u%04x`, high, low)
		}
	}
	return out
}
