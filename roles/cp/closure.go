package cp

import (
	"io"
	"net/http"
	"regexp"
	"strings"
	"time"
)

var closureHash = regexp.MustCompile(`^[0-9abcdfghijklmnpqrsvwxyz]{32}$`)

const narinfoLimit = 1 << 20

// closure asks the cache for a narinfo on behalf of a host.
func (s *server) closure(w http.ResponseWriter, r *http.Request) {
	hash := r.PathValue("hash")
	if s.cfg.ClosureUpstream == "" {
		writeJSON(w, http.StatusNotImplemented, map[string]string{"error": "closure proxy not configured", "closure": hash, "tracking": "--closure-upstream"})
		return
	}
	if !closureHash.MatchString(hash) {
		writeNotFound(w, r, "no hash of a store path")
		return
	}
	req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, strings.TrimSuffix(s.cfg.ClosureUpstream, "/")+"/"+hash+".narinfo", nil)
	if err != nil {
		http.Error(w, "cache not reachable", http.StatusBadGateway)
		return
	}
	resp, err := s.cache.Do(req)
	if err != nil {
		s.log.Warn().Err(err).Msg("cache not reachable")
		http.Error(w, "cache not reachable", http.StatusBadGateway)
		return
	}
	defer resp.Body.Close()
	w.Header().Set("Content-Type", "text/x-nix-narinfo")
	w.WriteHeader(resp.StatusCode)
	// The status is out; a body that breaks off is all that is left to tell.
	_, _ = io.Copy(w, io.LimitReader(resp.Body, narinfoLimit))
}

const cacheTimeout = 30 * time.Second
