package client

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"

	"nixfleet/roles/protocol"
)

const (
	// maxRefusal bounds what is read of a refusal, in bytes; maxMessage what is
	// kept of it, in characters.
	maxRefusal = 64 << 10
	maxMessage = 500
	// maxRetryAfter bounds what Retry-After may ask for.
	maxRetryAfter = 24 * time.Hour
)

// Error is a refusal by the control plane: the coded error that crosses HTTP.
// Its texts are those of the control plane, made safe for a terminal.
type Error struct {
	Status     int
	Code       string // stable word, empty when the control plane gave none
	Message    string
	Hint       string        // what to do about it, empty when the control plane gave none
	RetryAfter time.Duration // zero when the answer named none
}

func (e *Error) Error() string {
	text := fmt.Sprintf("control plane answered %d %s", e.Status, http.StatusText(e.Status))
	if e.Message != "" {
		text += ": " + e.Message
	}
	return text
}

// NotReady reports that the control plane waits for its first release, which an
// enrolling agent waits out.
func (e *Error) NotReady() bool {
	return e.Status == http.StatusServiceUnavailable && strings.Contains(e.Message, "control plane not ready")
}

// refusal reads as much of an answer as is needed to say why.
func refusal(resp *http.Response) *Error {
	e := &Error{Status: resp.StatusCode, RetryAfter: retryAfter(resp.Header, time.Now())}
	// A cut-off text still says more than none.
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxRefusal))
	var body protocol.Refusal
	if protocol.DecodeKnown(text, &body) == nil {
		e.Message, e.Code, e.Hint = printable(body.Error), printable(body.Code), printable(body.Hint)
		if body.Reason != "" {
			e.Message = printable(body.Error + ": " + body.Reason)
		}
		return e
	}
	e.Message = printable(string(text))
	return e
}

// printable is one line of bounded length without control characters: the text
// comes from the network and ends in logs and on terminals.
func printable(text string) string {
	clean := strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case !unicode.IsPrint(r):
			return -1
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
	words := []rune(strings.TrimSpace(clean))
	if len(words) > maxMessage {
		return string(words[:maxMessage]) + " …"
	}
	return string(words)
}

// retryAfter reads the header as seconds or as a date (RFC 9110 §10.2.3). What
// is neither, or in the past, is zero.
func retryAfter(h http.Header, now time.Time) time.Duration {
	value := h.Get("Retry-After")
	if secs, err := strconv.ParseUint(value, 10, 31); err == nil {
		return min(time.Duration(secs)*time.Second, maxRetryAfter)
	}
	at, err := http.ParseTime(value)
	if err != nil {
		return 0
	}
	// The server's own clock, when it tells it, is the one the date is of.
	if date, err := http.ParseTime(h.Get("Date")); err == nil {
		now = date
	}
	return min(max(at.Sub(now), 0), maxRetryAfter)
}

// boundedError is an error whose text is made safe like a refusal's: names of a
// certificate, members of an answer and the like are the other side's words.
type boundedError struct{ err error }

func (e boundedError) Error() string { return printable(e.err.Error()) }
func (e boundedError) Unwrap() error { return e.err }

func bounded(err error) error { return boundedError{err} }
