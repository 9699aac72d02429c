package cp

import (
	"errors"
	"io"
	"io/fs"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"time"

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
	if r.Header.Get("If-None-Match") == tag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	w.Write(body)
}

// head serves a channel's head to its own hosts and to operators.
func (s *server) head(sig bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c := s.channelFor(r)
		if c == nil || c.Head == nil {
			http.NotFound(w, r)
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
		writeRefusal(w, http.StatusForbidden, "not-yours", "the certificate is of another host")
		return
	}
	c := s.channelFor(r)
	if c == nil {
		http.NotFound(w, r)
		return
	}
	index, ok := c.Index[host]
	if !ok {
		http.NotFound(w, r)
		return
	}
	path, err := c.Tree.Proof(index)
	if err != nil {
		s.answerFailure(w, r, err)
		return
	}
	writeJSON(w, http.StatusOK, protocol.Proof{Leaf: fleet.Leaf(c.Manifest.HostSet[index]), Index: index, Path: path})
}

// manifest serves a manifest by its id, in the order of wire.md §8: what was
// accepted, the release directory, a local directory, the URL source.
func (s *server) manifest(sig bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		id := r.PathValue("id")
		if !fleet.ValidRolloutID(id) {
			http.NotFound(w, r)
			return
		}
		a, hosts, status := s.findManifest(r, id)
		if status != 0 {
			w.WriteHeader(status)
			return
		}
		if !mayRead(caller(r), a, hosts) {
			writeRefusal(w, http.StatusForbidden, "not-yours", "the manifest does not name this host")
			return
		}
		writeDocument(w, r, a, sig)
	}
}

func mayRead(id pki.Identity, a fleet.Artifact, c *fleet.ChannelRelease) bool {
	if id.Role != pki.RoleAgent {
		return true
	}
	if c != nil {
		_, ok := c.Index[id.Name]
		return ok
	}
	m, err := fleet.ParseManifest(a.Body)
	if err != nil {
		return false
	}
	for _, e := range m.HostSet {
		if e.Hostname == id.Name {
			return true
		}
	}
	return false
}

func (s *server) findManifest(r *http.Request, id string) (fleet.Artifact, *fleet.ChannelRelease, int) {
	if c := s.history.find(id); c != nil && len(c.ManifestFile.Body) > 0 {
		return c.ManifestFile, c, 0
	}
	snap := s.snapshot.Load()
	dirs := []fs.FS{snap.files}
	if s.cfg.RolloutsDir != "" {
		dirs = append([]fs.FS{flatDir{boundedDir(s.cfg.RolloutsDir)}}, dirs...)
	}
	for _, dir := range dirs {
		a, err := (&snapshot{files: dir}).storedManifest(id)
		switch {
		case err == nil:
			return a, nil, 0
		case errors.Is(err, fs.ErrNotExist):
		default:
			s.log.Error().Err(err).Str("rollout", id).Msg("manifest not served")
			return fleet.Artifact{}, nil, http.StatusInternalServerError
		}
	}
	if !s.cfg.Rollouts.given() {
		return fleet.Artifact{}, nil, http.StatusNotFound
	}
	a, err := s.fetchManifest(r, id)
	if err != nil {
		s.log.Error().Err(err).Str("rollout", id).Msg("manifest not fetched")
		return fleet.Artifact{}, nil, http.StatusBadGateway
	}
	return a, nil, 0
}

// flatDir is a directory that holds manifests without the rollouts/ before them.
type flatDir struct{ boundedDir }

// ReadFile reads name by its base.
func (d flatDir) ReadFile(name string) ([]byte, error) {
	return d.boundedDir.ReadFile(filepath.Base(name))
}

func (s *server) fetchManifest(r *http.Request, id string) (fleet.Artifact, error) {
	at := func(template string) string { return strings.ReplaceAll(template, "{rolloutId}", id) }
	body, _, err := fetch(r.Context(), s.fetcher, at(s.cfg.Rollouts.artifact), s.cfg.Rollouts.tokenFile, "")
	if err != nil {
		return fleet.Artifact{}, err
	}
	sig, _, err := fetch(r.Context(), s.fetcher, at(s.cfg.Rollouts.signature), s.cfg.Rollouts.tokenFile, "")
	if err != nil {
		return fleet.Artifact{}, err
	}
	if pki.HashHex(body) != id {
		return fleet.Artifact{}, errUnfit
	}
	return fleet.Artifact{Body: body, Sig: sig, Hash: id}, nil
}

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
		http.NotFound(w, r)
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
