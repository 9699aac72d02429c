package client

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"nixfleet/pki"
	"nixfleet/roles/protocol"
)

// TestHostileAnswers: a control plane that means harm costs its client a bounded
// amount of memory and time, and is never taken for one that answered.
func TestHostileAnswers(t *testing.T) {
	var followed atomic.Int32
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { followed.Add(1) }))
	defer elsewhere.Close()
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		is     error
		status int // of an *Error
	}{
		"redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
		}, nil, 307},
		"redirect to itself": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path, http.StatusFound)
		}, nil, 302},
		"endless body": {func(w http.ResponseWriter, r *http.Request) {
			for chunk := make([]byte, 64<<10); ; {
				if _, err := w.Write(chunk); err != nil {
					return
				}
			}
		}, ErrTooLarge, 0},
		"endless refusal": {func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(500)
			for chunk := []byte(strings.Repeat("no ", 20_000)); ; {
				if _, err := w.Write(chunk); err != nil {
					return
				}
			}
		}, nil, 500},
		"huge header": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X", strings.Repeat("x", maxHeader))
			fmt.Fprint(w, `{"nextCheckinSecs":60}`)
		}, nil, 0},
		"no JSON": {func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "<html>") }, pki.ErrSyntax, 0},
		"nothing": {func(w http.ResponseWriter, r *http.Request) {}, pki.ErrSyntax, 0},
		"null":    {func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "null") }, pki.ErrShape, 0},
		"another shape": {func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, `{"nextCheckinSecs":"soon"}`) },
			pki.ErrShape, 0},
		"repeated members": {func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, `{"nextCheckinSecs":1,"nextCheckinSecs":2}`)
		}, pki.ErrDuplicateKey, 0},
		"nested deeply": {func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, strings.Repeat("[", 1<<19)) },
			pki.ErrDepth, 0},
		"cut off": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "100")
			fmt.Fprint(w, `{"nextCheckinSecs":1}`)
		}, io.ErrUnexpectedEOF, 0},
		"hangs up": {func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }, io.EOF, 0},
		"no content": {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNoContent) },
			pki.ErrSyntax, 0},
	} {
		t.Run(name, func(t *testing.T) {
			client := against(t, c.answer)
			answer, err := client.Checkin(t.Context(), &protocol.CheckinRequest{}, 0)
			if err == nil {
				t.Fatalf("taken for an answer: %+v", answer)
			}
			if c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("%v is not %v", err, c.is)
			}
			var refused *Error
			if errors.As(err, &refused); c.status != 0 && (refused == nil || refused.Status != c.status) {
				t.Errorf("%v is not status %d", err, c.status)
			}
			if len(err.Error()) > 2000 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
		})
	}
	if followed.Load() != 0 {
		t.Error("a redirect was followed")
	}
}

// TestAnswersAreBoundedByKind: a view grows with the fleet, what an agent is
// told does not.
func TestAnswersAreBoundedByKind(t *testing.T) {
	padding := strings.Repeat(" ", maxAnswer)
	c := against(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, `{"hosts":[],"nextCheckinSecs":60,"leaf":{},"index":0,"path":[]}`, padding)
	})
	if _, err := c.Hosts(t.Context()); err != nil {
		t.Errorf("view: %v", err)
	}
	if _, err := c.Checkin(t.Context(), &protocol.CheckinRequest{}, 0); !errors.Is(err, ErrTooLarge) {
		t.Errorf("check-in: %v", err)
	}
	if _, err := c.HeadProof(t.Context(), "stable", "web-01"); !errors.Is(err, ErrTooLarge) {
		t.Errorf("proof: %v", err)
	}
	if _, _, err := c.Head(t.Context(), "stable"); !errors.Is(err, ErrTooLarge) {
		t.Errorf("head: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		name, body string
		header     map[string]string
		status     int
		want       Error
		notReady   bool
	}{
		{"v1 not ready", `{"error":"control plane not ready","reason":"awaiting first signed artifact"}`,
			map[string]string{"Retry-After": "30"}, 503,
			Error{Message: "control plane not ready: awaiting first signed artifact", RetryAfter: 30 * time.Second}, true},
		{"another 503", "", nil, 503, Error{}, false},
		{"coded", `{"error":"no","code":"not-yours","hint":"use another certificate"}`, nil, 403,
			Error{Message: "no", Code: "not-yours", Hint: "use another certificate"}, false},
		{"plain text", "missing field `hostname`\n", nil, 422, Error{Message: "missing field `hostname`"}, false},
		{"colours and bells for a terminal", "\x1b[31mred\x07\r\n\x1b]0;title\x07\u202edone\xff", nil, 500,
			Error{Message: "[31mred  ]0;titledone?"}, false},
		{"very long", strings.Repeat("é", 2000), nil, 500, Error{Message: strings.Repeat("é", 500) + " …"}, false},
		{"gone", "", nil, 410, Error{}, false},
		{"retry after a date", "", map[string]string{"Date": "Sun, 01 Mar 2026 12:00:00 GMT",
			"Retry-After": "Sun, 01 Mar 2026 12:01:30 GMT"}, 429,
			Error{RetryAfter: 90 * time.Second}, false},
		{"retry after a past date", "",
			map[string]string{"Date": "Sun, 01 Mar 2026 12:00:00 GMT", "Retry-After": "Sun, 01 Mar 2026 11:00:00 GMT"}, 429,
			Error{}, false},
		{"retry in a century", "", map[string]string{"Retry-After": "2000000000"}, 503, Error{RetryAfter: maxRetryAfter},
			false},
		{"retry that overflows", "", map[string]string{"Retry-After": "99999999999999999999"}, 503, Error{}, false},
		{"negative retry", "", map[string]string{"Retry-After": "-5"}, 503, Error{}, false},
		{"retry that is a word", "", map[string]string{"Retry-After": "soon"}, 503, Error{}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := against(t, func(w http.ResponseWriter, r *http.Request) {
				for name, value := range c.header {
					w.Header().Set(name, value)
				}
				w.WriteHeader(c.status)
				fmt.Fprint(w, c.body)
			})
			_, err := client.Whoami(t.Context())
			var got *Error
			if !errors.As(err, &got) {
				t.Fatalf("%v", err)
			}
			c.want.Status = c.status
			if *got != c.want || got.NotReady() != c.notReady {
				t.Errorf("%+v, not ready %v; want %+v", *got, got.NotReady(), c.want)
			}
		})
	}
}
