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

func (d *documents) manifest(c *call) (any, error)          { return d.aManifest(c, false) }
func (d *documents) manifestSignature(c *call) (any, error) { return d.aManifest(c, true) }

// aManifest serves a manifest by its id, in the order of wire.md §8: what was
// accepted, the release directory, a local directory, the URL source.
func (d *documents) aManifest(c *call, sig bool) (any, error) {
	id := c.PathValue("id")
	if !d.cfg.holdsManifests() && !d.snapshot.Load().holdsManifests() {
		return nil, bareStatus(http.StatusServiceUnavailable)
	}
	if !fleet.ValidRolloutID(id) {
		return nil, notFound("not a rollout id")
	}
	a, hosts, err := d.findManifest(id)
	if err != nil {
		return nil, err
	}
	if !mayRead(c.caller, a, hosts) {
		return nil, refused(http.StatusForbidden, "not-yours", "the manifest does not name this host")
	}
	return document{a, sig}, nil
}

// holdsManifests reports whether the release came with its manifests.
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
func (d *documents) findManifest(id string) (a fleet.Artifact, hosts map[string]int, err error) {
	snap := d.snapshot.Load()
	for _, c := range snap.rel.Channels {
		if c.RolloutID == id && len(c.ManifestFile.Body) > 0 {
			return c.ManifestFile, c.Index, nil
		}
	}
	if m, ok := d.history.find(id); ok {
		return m.file, m.hosts, nil
	}
	dirs := []fs.FS{snap.files}
	if d.cfg.RolloutsDir != "" {
		dirs = append([]fs.FS{flatDir{source.Dir(d.cfg.RolloutsDir)}}, dirs...)
	}
	for _, dir := range dirs {
		a, err := fleet.ReadManifest(dir, id)
		switch {
		case err == nil:
			return a, nil, nil
		case errors.Is(err, fs.ErrNotExist):
		default:
			d.log.Error().Err(err).Str("rollout", id).Msg("manifest not served")
			return fleet.Artifact{}, nil, bareStatus(http.StatusInternalServerError)
		}
	}
	if !d.cfg.Rollouts.Given() {
		return fleet.Artifact{}, nil, bareStatus(http.StatusNotFound)
	}
	// The agents of a wave ask at once: those who wait for the same one share it.
	got, err, _ := d.fetches.Do(id, func() (any, error) { return d.fetchManifest(id) })
	if err != nil {
		d.log.Error().Err(err).Str("rollout", id).Msg("manifest not fetched")
		return fleet.Artifact{}, nil, bareStatus(http.StatusBadGateway)
	}
	return got.(fleet.Artifact), nil, nil
}

// flatDir is a directory that holds manifests without the rollouts/ before them.
type flatDir struct{ source.Dir }

// Open opens the file that has the base of name.
func (f flatDir) Open(name string) (fs.File, error) { return f.Dir.Open(path.Base(name)) }

// fetchManifest asks the URL source, on behalf of all who wait for the manifest:
// it does not end with the request of one.
func (d *documents) fetchManifest(id string) (fleet.Artifact, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*source.FetchTimeout)
	defer cancel()
	at := func(template string) string { return strings.ReplaceAll(template, "{rolloutId}", id) }
	body, _, err := source.Get(ctx, d.fetcher, at(d.cfg.Rollouts.Artifact), d.cfg.Rollouts.TokenFile, "",
		fleet.MaxSize(fleet.ManifestName(id)))
	if err != nil {
		return fleet.Artifact{}, err
	}
	sig, _, err := source.Get(ctx, d.fetcher, at(d.cfg.Rollouts.Signature), d.cfg.Rollouts.TokenFile, "",
		fleet.MaxSize(fleet.SignatureSuffix))
	if err != nil {
		return fleet.Artifact{}, err
	}
	if pki.HashHex(body) != id {
		return fleet.Artifact{}, fmt.Errorf("manifest %s: %w: it hashes to %s", id, fleet.ErrMembers, pki.HashHex(body))
	}
	return fleet.Artifact{Body: body, Sig: sig, Hash: id}, nil
}
