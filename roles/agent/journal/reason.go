package journal

import "nixfleet/roles/protocol"

// Reason says why an activation ended: a cause, which decides what follows, and words for
// people, which decide nothing. On disk and on the wire it is one text, `cause: words`.
type Reason struct {
	Cause protocol.Cause // empty in a text that names none
	Text  string
}

// Because is a reason with its words.
func Because(cause protocol.Cause, text string) Reason { return Reason{cause, text} }

func (r Reason) String() string {
	switch {
	case r.Cause == "":
		return r.Text
	case r.Text == "":
		return string(r.Cause)
	}
	return r.Cause.With(r.Text)
}

// BlamesRelease reports whether the closure failed, rather than the host or nobody.
func (r Reason) BlamesRelease() bool { return r.Cause.Blame() == protocol.BlameRelease }

// MarshalText makes the one text of a reason.
func (r Reason) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads it back. A text that is not of that form is all words.
func (r *Reason) UnmarshalText(text []byte) error {
	read := Reason{}
	read.Cause, read.Text = protocol.SplitCause(string(text))
	if read.String() != string(text) {
		read = Reason{Text: string(text)}
	}
	*r = read
	return nil
}
