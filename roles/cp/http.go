package cp

import (
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"

	"github.com/go-json-experiment/json"

	"nixfleet/roles/protocol"
)

// writeJSON answers with a JSON body.
func writeJSON(w http.ResponseWriter, status int, v any) {
	doc, err := json.Marshal(v)
	if err != nil {
		http.Error(w, "", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(doc)
}

// refusal is the coded error that crosses HTTP.
type refusal struct {
	Error string `json:"error"`
	Code  string `json:"code"`
}

// writeRefusal says why to those who ask for JSON, as our agents and operators
// do. In v1 a status has no body.
func writeRefusal(w http.ResponseWriter, r *http.Request, status int, code, text string) {
	if !asksForJSON(r.Header) {
		w.WriteHeader(status)
		return
	}
	writeJSON(w, status, refusal{text, code})
}

func writeNotFound(w http.ResponseWriter, r *http.Request, what string) {
	writeRefusal(w, r, http.StatusNotFound, "not-found", what)
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

// readJSON reads a request body into v, or answers 415, 413, 400 or 422 and
// returns false.
func readJSON(w http.ResponseWriter, r *http.Request, v any) bool {
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "application/json" && !(strings.HasPrefix(kind, "application/") && strings.HasSuffix(kind, "+json")) {
		http.Error(w, "expected request with `Content-Type: application/json`", http.StatusUnsupportedMediaType)
		return false
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, protocol.MaxBody))
	if err != nil {
		status := http.StatusBadRequest
		if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
			status = http.StatusRequestEntityTooLarge
		}
		http.Error(w, "request body: "+err.Error(), status)
		return false
	}
	if status, err := protocol.DecodeStrict(body, v); err != nil {
		http.Error(w, fmt.Sprintf("request body: %v", err), status)
		return false
	}
	return true
}
