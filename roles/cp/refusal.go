package cp

import (
	"fmt"
	"net/http"
	"strings"

	"nixfleet/roles/protocol"
)

// Refusal is the one error that crosses HTTP: a status with a reason.
type Refusal struct {
	Status int
	Code   string // stable word
	Text   string
	Hint   string // what the caller should do, empty when the text says it
	form   form
}

// form is how v1 writes a refusal.
type form int

const (
	// whenAsked is a body of JSON for callers that accept one, as our agents and
	// operators do, and v1's empty body for others.
	whenAsked form = iota
	// bare is an empty body for all.
	bare
	// plain is a line of text for all.
	plain
)

func (e *Refusal) Error() string { return e.Text }

// refused is a Refusal with the reason for callers that ask for it.
func refused(status int, code, format string, args ...any) *Refusal {
	return &Refusal{Status: status, Code: code, Text: fmt.Sprintf(format, args...), form: whenAsked}
}

// bareStatus is a Refusal that is nothing but its status.
func bareStatus(status int) *Refusal {
	return &Refusal{Status: status, Text: http.StatusText(status), form: bare}
}

// badRequest is a Refusal in v1's plain text.
func badRequest(status int, format string, args ...any) *Refusal {
	return &Refusal{Status: status, Text: fmt.Sprintf(format, args...), form: plain}
}

func notFound(format string, args ...any) *Refusal {
	return refused(http.StatusNotFound, "not-found", format, args...)
}

// write answers with the refusal.
func (e *Refusal) write(w http.ResponseWriter, r *http.Request) {
	switch {
	case e.form == plain:
		http.Error(w, e.Text, e.Status)
	case e.form == bare || !asksForJSON(r.Header):
		w.WriteHeader(e.Status)
	default:
		writeJSON(w, e.Status, protocol.Refusal{Error: e.Text, Code: e.Code, Hint: e.Hint})
	}
}

func asksForJSON(h http.Header) bool {
	for _, accept := range h.Values("Accept") {
		for kind := range strings.SplitSeq(accept, ",") {
			kind, _, _ = strings.Cut(kind, ";")
			if strings.EqualFold(strings.TrimSpace(kind), "application/json") {
				return true
			}
		}
	}
	return false
}
