package cp

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"io"
	"net/http"
	"strings"

	"nixfleet/roles/cp/source"
	"nixfleet/roles/protocol"
)

// webhook lets a forge announce a commit. What it says of the commit is not
// believed: the source is asked.
func (s *server) webhook(w http.ResponseWriter, r *http.Request) {
	if s.cfg.WebhookTokenFile == "" {
		writeNotFound(w, r, "no webhook token is configured")
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, protocol.MaxBody))
	if err != nil {
		http.Error(w, "request body: "+err.Error(), http.StatusRequestEntityTooLarge)
		return
	}
	if !s.announced(r.Header, body) {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if !s.webhookLimit.Allow() {
		s.tooMany(w, r, "webhook", r.RemoteAddr, "too many announcements; the source is looked at anyway")
		return
	}
	s.lookNow()
	w.WriteHeader(http.StatusAccepted)
}

// announced reports whether the sender knows the token: as a bearer, as GitLab
// sends it, or by a signature over the body as GitHub, Gitea and Forgejo do.
func (s *server) announced(h http.Header, body []byte) bool {
	token, err := source.Secret(s.cfg.WebhookTokenFile)
	if err != nil {
		s.log.Error().Err(err).Msg("webhook token not read")
		return false
	}
	if given, ok := strings.CutPrefix(h.Get("X-Hub-Signature-256"), "sha256="); ok {
		sum, err := hex.DecodeString(given)
		mac := hmac.New(sha256.New, []byte(token))
		mac.Write(body)
		return err == nil && hmac.Equal(sum, mac.Sum(nil))
	}
	given, ok := strings.CutPrefix(h.Get("Authorization"), "Bearer ")
	if !ok {
		given = h.Get("X-Gitlab-Token")
	}
	return subtle.ConstantTimeCompare([]byte(given), []byte(token)) == 1
}
