package cp

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"net/http"
	"strings"

	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"nixfleet/roles/cp/source"
	"nixfleet/roles/protocol"
)

// webhook lets a forge announce a commit. What it says of the commit is not
// believed: the source is polled.
type webhook struct {
	cfg     *Config
	log     zerolog.Logger
	door    *door
	release *inForce
	limit   *rate.Limiter
}

func (h *webhook) announce(c *call) (any, error) {
	if h.cfg.WebhookTokenFile == "" {
		return nil, notFound("no webhook token is configured")
	}
	body, err := c.body(protocol.MaxBody)
	if err != nil {
		return nil, badRequest(http.StatusRequestEntityTooLarge, "%v", err)
	}
	if !h.authentic(c.Header, body) {
		return nil, bareStatus(http.StatusUnauthorized)
	}
	if !h.limit.Allow() {
		return nil, h.door.tooMany(c.w, c.Request, "webhook", c.RemoteAddr,
			"too many webhook calls; the source is already being polled")
	}
	h.release.lookNow()
	return nothingBut(http.StatusAccepted), nil
}

// signatures are the headers in which forges send the HMAC-SHA-256 of the body, in hex, and what stands before it. The
// first that was sent decides. Gitea alone sends X-Gitea-Signature, Bitbucket X-Hub-Signature; GitHub's header of that
// name is of SHA-1 and opens nothing.
var signatures = []struct{ header, prefix string }{
	{"X-Hub-Signature-256", "sha256="},
	{"X-Forgejo-Signature", ""},
	{"X-Gitea-Signature", ""},
	{"X-Hub-Signature", "sha256="},
}

// authentic reports whether the sender knows the token: by a signature over the body, as a bearer, or as GitLab sends
// it.
func (h *webhook) authentic(header http.Header, body []byte) bool {
	token, err := source.Secret(h.cfg.WebhookTokenFile)
	if err != nil {
		h.log.Error().Err(err).Msg("webhook token not read")
		return false
	}
	for _, s := range signatures {
		given, ok := strings.CutPrefix(header.Get(s.header), s.prefix)
		if !ok || given == "" {
			continue
		}
		sum, err := hex.DecodeString(given)
		mac := hmac.New(sha256.New, []byte(token))
		mac.Write(body)
		return err == nil && hmac.Equal(sum, mac.Sum(nil))
	}
	given := header.Get("X-Gitlab-Token")
	if scheme, credentials, ok := strings.Cut(header.Get("Authorization"), " "); ok &&
		strings.EqualFold(scheme, "bearer") {
		given = strings.TrimLeft(credentials, " ")
	}
	return subtle.ConstantTimeCompare([]byte(given), []byte(token)) == 1
}
