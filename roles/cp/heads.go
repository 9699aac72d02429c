package cp

import (
	"net/http"
	"strings"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/protocol"
)

func writeDocument(w http.ResponseWriter, r *http.Request, a fleet.Artifact, sig bool) {
	body, kind, tag := a.Body, "application/json", `"`+a.Hash+`"`
	if sig {
		body, kind, tag = a.Sig, "application/octet-stream", `"`+pki.HashHex(a.Sig)+`"`
	}
	w.Header().Set("ETag", tag)
	w.Header().Set("Content-Type", kind)
	if alreadyHas(r.Header, tag) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	w.Write(body)
}

// alreadyHas compares weakly (RFC 9110 §13.1.2): what is between may have
// weakened a tag, and a client may name several.
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

// head serves a channel's head to its own hosts and to operators.
func (s *server) head(sig bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c := s.channelFor(r)
		if c == nil || c.Head == nil {
			writeNotFound(w, r, "no such head")
			return
		}
		writeDocument(w, r, c.HeadFile, sig)
	}
}

// channelFor is the channel of the path, nil when there is none or the caller
// is a host of another.
func (s *server) channelFor(r *http.Request) *fleet.ChannelRelease {
	id, snap := caller(r), s.snapshot.Load()
	name := r.PathValue("channel")
	if id.Role == pki.RoleAgent {
		if h := snap.rel.Fleet.Hosts[id.Name]; h == nil || h.Channel != name {
			return nil
		}
	}
	return snap.rel.Channels[name]
}

func (s *server) proof(w http.ResponseWriter, r *http.Request) {
	id, host := caller(r), r.PathValue("host")
	if id.Role == pki.RoleAgent && id.Name != host {
		writeRefusal(w, r, http.StatusForbidden, "not-yours", "the certificate is of another host")
		return
	}
	c := s.channelFor(r)
	if c == nil {
		writeNotFound(w, r, "no such channel")
		return
	}
	index, ok := c.Index[host]
	if !ok {
		writeNotFound(w, r, "the channel has no such host")
		return
	}
	path, err := c.Tree.Proof(index)
	if err != nil {
		s.answerFailure(w, r, err)
		return
	}
	writeJSON(w, http.StatusOK, protocol.Proof{Leaf: fleet.Leaf(c.Manifest.HostSet[index]), Index: index, Path: path})
}
