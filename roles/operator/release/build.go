package release

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/go-json-experiment/json"

	"nixfleet/nixops"
	"nixfleet/pki"
	"nixfleet/roles/command"
)

// build finds each host's closure: given in a file, written in the declaration already (a declaration from a file
// alone), or built. What comes of it is checked as a whole.
func (r *releaser) build(ctx context.Context, d *draft) (*built, error) {
	b := &built{draft: *d, closures: map[string]string{}}
	var err error
	switch {
	case r.cfg.Source.Closures != "":
		b.closures, err = r.givenClosures(d)
	case r.cfg.Source.FleetFile == "":
		b.closures, err = r.buildHosts(ctx, d)
	}
	if err != nil {
		return nil, err
	}
	for _, name := range sortedKeys(b.closures) {
		base := filepath.Base(b.closures[name])
		if err := d.declaration.SetClosure(name, base); err != nil {
			return nil, err
		}
	}
	return b, r.check(d)
}

// givenClosures reads the file that maps hosts to store paths.
func (r *releaser) givenClosures(d *draft) (map[string]string, error) {
	file := r.cfg.Source.Closures
	raw, err := command.ReadFile(file, pki.MaxDocument)
	if err != nil {
		return nil, fmt.Errorf("read closures: %w", err)
	}
	canonical, err := pki.Canonicalize(raw)
	if err != nil {
		return nil, fmt.Errorf("read closures %s: %w", file, err)
	}
	var given map[string]any
	if err := json.Unmarshal(canonical, &given); err != nil {
		return nil, fmt.Errorf("read closures %s: %w", file, err)
	}
	if given == nil {
		return nil, fmt.Errorf("read closures %s: it is null", file)
	}
	closures := map[string]string{}
	for _, name := range sortedKeys(given) {
		path, ok := given[name].(string)
		if !ok {
			return nil, fmt.Errorf("read closures: %s is not a store path", name)
		}
		if !d.declaration.HasHost(name) {
			return nil, command.Hinted(fmt.Errorf("closures name host %s, which the fleet does not declare", name),
				"declared: %s", strings.Join(d.declaration.HostNames(), ", "))
		}
		closures[name] = path
	}
	if r.cfg.Source.Hosts == allHosts {
		return closures, nil
	}
	names, err := selectHosts(r.cfg.Source.Hosts, sortedKeys(closures))
	if err != nil {
		return nil, err
	}
	maps.DeleteFunc(closures, func(name, _ string) bool { return !slices.Contains(names, name) })
	return closures, nil
}

// allHosts is the word for every host that is known.
const allHosts = "auto"

// selectHosts reads which hosts are wanted: auto, auto:exclude=a,b or a,b.
func selectHosts(wanted string, known []string) ([]string, error) {
	if wanted == allHosts {
		return known, nil
	}
	excluded, isExclusion := strings.CutPrefix(wanted, allHosts+":exclude=")
	named := strings.Split(excluded, ",")
	for i, name := range named {
		named[i] = strings.TrimSpace(name)
		if !slices.Contains(known, named[i]) {
			return nil, command.Hinted(fmt.Errorf("--hosts: there is no host %q", named[i]), "there are: %s",
				strings.Join(known, ", "))
		}
	}
	if !isExclusion {
		return named, nil
	}
	return slices.DeleteFunc(slices.Clone(known), func(name string) bool { return slices.Contains(named, name) }), nil
}

// buildHosts builds the wanted hosts side by side. The first failure ends it: a release of half a fleet is not what
// was asked for.
func (r *releaser) buildHosts(ctx context.Context, d *draft) (map[string]string, error) {
	byName := map[string]nixops.FlakeHost{}
	for _, h := range d.systems {
		if !d.declaration.HasHost(h.Name) {
			r.say("warning: the flake has a system %s that the fleet does not declare", h.Name)
			continue
		}
		byName[h.Name] = h
	}
	names, err := selectHosts(r.cfg.Source.Hosts, sortedKeys(byName))
	if err != nil {
		return nil, err
	}
	sources := make([]string, len(names))
	for i, name := range names {
		if sources[i], err = r.sourceOf(d, name); err != nil {
			return nil, err
		}
	}
	paths := make([]string, len(names))
	var done atomic.Int32
	group, building := errgroup.WithContext(ctx)
	group.SetLimit(r.cfg.Nix.Jobs)
	for i, name := range names {
		group.Go(func() error {
			started := time.Now()
			r.say("building %s", name)
			builds := &buildProgress{}
			stop := r.waiting("building "+name, builds.String)
			path, err := r.nix(builds.heard).Build(building, sources[i], byName[name])
			stop()
			if err != nil {
				return command.Hinted(fmt.Errorf("build %s: %w", name, err),
					"%s", withoutNix(err, "what Nix said is above; --hosts "+name+" builds this host alone"))
			}
			paths[i] = path
			r.say("built %s in %s (%d of %d): %s", name, time.Since(started).Round(time.Second), done.Add(1), len(names), path)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	closures := map[string]string{}
	for i, name := range names {
		closures[name] = paths[i]
	}
	return closures, nil
}

// sourceOf is the flake that a host is built from: a pinned host comes from its commit.
func (r *releaser) sourceOf(d *draft, name string) (string, error) {
	pin, err := d.declaration.Pin(name)
	if err != nil {
		return "", pinError(err)
	}
	if pin == nil || d.ciCommit != nil && pin.Commit == *d.ciCommit {
		return r.cfg.Source.Flake, nil
	}
	url := r.cfg.Source.PinURL
	if url == "" {
		return "", command.Hinted(fmt.Errorf("host %s is pinned to %s, and --pin-source-url does not say where that is", name,
			pin.Commit),
			"--pin-source-url git+https://forge.example.com/fleet.git")
	}
	joint := "?"
	if strings.Contains(url, "?") {
		joint = "&"
	}
	return url + joint + "rev=" + pin.Commit, nil
}
