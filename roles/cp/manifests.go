package cp

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"path"
	"strings"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/cp/source"
)

// manifest serves a manifest by its id, in the order of wire.md §8: what was
// accepted, the release directory, a local directory, the URL source.
func (s *server) manifest(sig bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		id := r.PathValue("id")
		if !s.cfg.holdsManifests() && !s.snapshot.Load().holdsManifests() {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		if !fleet.ValidRolloutID(id) {
			writeNotFound(w, r, "no rollout id")
			return
		}
		a, hosts, status := s.findManifest(id)
		if status != 0 {
			w.WriteHeader(status)
			return
		}
		if !mayRead(caller(r), a, hosts) {
			writeRefusal(w, r, http.StatusForbidden, "not-yours", "the manifest does not name this host")
			return
		}
		writeDocument(w, r, a, sig)
	}
}

// holdsManifests: the release came with its manifests.
func (s *snapshot) holdsManifests() bool {
	for _, c := range s.rel.Channels {
		if len(c.ManifestFile.Body) > 0 {
			return true
		}
	}
	return false
}

func mayRead(id pki.Identity, a fleet.Artifact, hosts map[string]int) bool {
	if id.Role != pki.RoleAgent {
		return true
	}
	if hosts != nil {
		_, ok := hosts[id.Name]
		return ok
	}
	m, err := fleet.ParseManifest(a.Body)
	if err != nil {
		return false
	}
	_, err = m.Entry(id.Name)
	return err == nil
}

// findManifest gives the hosts that it names when they are at hand.
func (s *server) findManifest(id string) (a fleet.Artifact, hosts map[string]int, status int) {
	snap := s.snapshot.Load()
	for _, c := range snap.rel.Channels {
		if c.RolloutID == id && len(c.ManifestFile.Body) > 0 {
			return c.ManifestFile, c.Index, 0
		}
	}
	if m, ok := s.history.find(id); ok {
		return m.file, m.hosts, 0
	}
	dirs := []fs.FS{snap.files}
	if s.cfg.RolloutsDir != "" {
		dirs = append([]fs.FS{flatDir{source.Dir(s.cfg.RolloutsDir)}}, dirs...)
	}
	for _, dir := range dirs {
		a, err := fleet.ReadManifest(dir, id)
		switch {
		case err == nil:
			return a, nil, 0
		case errors.Is(err, fs.ErrNotExist):
		default:
			s.log.Error().Err(err).Str("rollout", id).Msg("manifest not served")
			return fleet.Artifact{}, nil, http.StatusInternalServerError
		}
	}
	if !s.cfg.Rollouts.Given() {
		return fleet.Artifact{}, nil, http.StatusNotFound
	}
	// The agents of a wave ask at once: those who wait for the same one share it.
	got, err, _ := s.fetches.Do(id, func() (any, error) { return s.fetchManifest(id) })
	if err != nil {
		s.log.Error().Err(err).Str("rollout", id).Msg("manifest not fetched")
		return fleet.Artifact{}, nil, http.StatusBadGateway
	}
	return got.(fleet.Artifact), nil, 0
}

// flatDir is a directory that holds manifests without the rollouts/ before them.
type flatDir struct{ source.Dir }

// Open opens the file that has the base of name.
func (d flatDir) Open(name string) (fs.File, error) { return d.Dir.Open(path.Base(name)) }

// fetchManifest asks the URL source, on behalf of all who wait for the manifest:
// it does not end with the request of one.
func (s *server) fetchManifest(id string) (fleet.Artifact, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*source.FetchTimeout)
	defer cancel()
	at := func(template string) string { return strings.ReplaceAll(template, "{rolloutId}", id) }
	body, _, err := source.Get(ctx, s.fetcher, at(s.cfg.Rollouts.Artifact), s.cfg.Rollouts.TokenFile, "")
	if err != nil {
		return fleet.Artifact{}, err
	}
	sig, _, err := source.Get(ctx, s.fetcher, at(s.cfg.Rollouts.Signature), s.cfg.Rollouts.TokenFile, "")
	if err != nil {
		return fleet.Artifact{}, err
	}
	if pki.HashHex(body) != id {
		return fleet.Artifact{}, fmt.Errorf("manifest %s: %w: it hashes to %s", id, fleet.ErrMembers, pki.HashHex(body))
	}
	return fleet.Artifact{Body: body, Sig: sig, Hash: id}, nil
}
