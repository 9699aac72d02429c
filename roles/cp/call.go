package cp

import (
	"bytes"
	"errors"
	"io"
	"mime"
	"net/http"
	"strings"

	"github.com/go-json-experiment/json"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/command"
	"nixfleet/roles/protocol"
)

// call is one request whose caller is known and may call this route.
type call struct {
	*http.Request
	caller pki.Identity
	scopes scopes              // of the caller; none for everything
	w      http.ResponseWriter // for headers and deadlines; answers are returned
}

// handler answers a call with a value, which is written as JSON, or with an
// error. Nothing is an answer without content; a reply writes itself.
type handler func(*call) (any, error)

// reply is an answer that is not JSON.
type reply interface {
	write(w http.ResponseWriter, r *http.Request)
}

// nothingBut is a reply that is nothing but its status.
type nothingBut int

func (s nothingBut) write(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(int(s)) }

// written is a reply that the handler has written itself.
type written struct{}

func (written) write(http.ResponseWriter, *http.Request) {}

// otherwise is a refusal that has a JSON document of its own in v1.
type otherwise struct {
	status int
	body   any
}

func (o otherwise) write(w http.ResponseWriter, _ *http.Request) { writeJSON(w, o.status, o.body) }

// writeJSON answers with a JSON body.
func writeJSON(w http.ResponseWriter, status int, v any) {
	doc, err := json.Marshal(v)
	if err != nil {
		http.Error(w, "", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if bytes.ContainsFunc(doc, func(r rune) bool { return r >= 0x7f }) {
		doc = command.VisibleJSON(doc) // the encoder escapes what is below
	}
	w.Write(doc)
}

// read decodes the body of a call; what is wrong with it is 415, 413, 400 or 422.
func (c *call) read(v any) error {
	kind, _, err := mime.ParseMediaType(c.Header.Get("Content-Type"))
	if err != nil || kind != "application/json" && !(strings.HasPrefix(kind, "application/") &&
		strings.HasSuffix(kind, "+json")) {
		return badRequest(http.StatusUnsupportedMediaType, "expected request with `Content-Type: application/json`")
	}
	body, err := c.body(protocol.MaxBody)
	if err != nil {
		return err
	}
	if status, err := protocol.DecodeStrict(body, v); err != nil {
		return badRequest(status, "request body: %v", err)
	}
	return nil
}

// body is that of a call, of at most limit bytes.
func (c *call) body(limit int64) ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(c.w, c.Body, limit))
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		return nil, badRequest(http.StatusRequestEntityTooLarge, "request body: %v", err)
	}
	if err != nil {
		return nil, badRequest(http.StatusBadRequest, "request body: %v", err)
	}
	return body, nil
}

// is refuses a caller that is not the host which the body names. Handlers ask it after
// they have read the body: an ill-formed body is answered as such to every caller.
func (c *call) is(host string) error {
	switch {
	case c.caller.Role != pki.RoleAgent:
		return refused(http.StatusForbidden, "agent-only", "certificate %q is not a host certificate", c.caller.Name)
	case c.caller.Name != host:
		return refused(http.StatusForbidden, "not-yours", "the certificate is of another host")
	}
	return nil
}

// document is a signed artifact, or its signature.
type document struct {
	fleet.Artifact
	sig bool
}

func (d document) write(w http.ResponseWriter, r *http.Request) {
	body, kind, tag := d.Body, "application/json", `"`+d.Hash+`"`
	if d.sig {
		body, kind, tag = d.Sig, "application/octet-stream", `"`+pki.HashHex(d.Sig)+`"`
	}
	w.Header().Set("ETag", tag)
	w.Header().Set("Content-Type", kind)
	if alreadyHas(r.Header, tag) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	w.Write(body)
}

// alreadyHas compares weakly (RFC 9110 §13.1.2): a proxy may have weakened a
// tag, and a client may name several.
func alreadyHas(h http.Header, tag string) bool {
	for _, line := range h.Values("If-None-Match") {
		for given := range strings.SplitSeq(line, ",") {
			if given = strings.TrimSpace(given); given == "*" || strings.TrimPrefix(given, "W/") == tag {
				return true
			}
		}
	}
	return false
}

func text(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// printed is foreign text that cannot act on a terminal or disorder a log.
func printed(s string) string { return command.Plain(brief(s)) }

// maxWords bounds a sentence of a host that ends in rows and views, in bytes.
const maxWords = 500

func brief(s string) string {
	if len(s) > maxWords {
		s = strings.ToValidUTF8(s[:maxWords], "") + " …"
	}
	return s
}
