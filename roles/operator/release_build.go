package operator

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"
	"golang.org/x/sync/errgroup"

	"nixfleet/nixops"
	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/command"
)

// draft is a fleet declaration with its closures, not yet stamped. The
// document stays generic: what a newer evaluator writes and we do not know
// still belongs to the bytes that are signed.
type draft struct {
	doc         map[string]any
	ciCommit    *string
	closures    map[string]string // host -> store path, where the path is known
	revocations *[]any            // nil: the fleet keeps no such list
	nonces      *[]any
}

// declare makes a draft from the declaration: evaluated, built and pushed.
func (r *releaser) declare(ctx context.Context) (*draft, error) {
	d := &draft{closures: map[string]string{}}
	flake := r.c.String("build-flake")
	var err error
	if d.ciCommit, err = r.commitOf(ctx, flake); err != nil {
		return nil, err
	}
	if d.ciCommit != nil && (r.c.String("fleet-file") == "" || r.c.String("closures") == "") {
		changed, err := uncommitted(ctx, flake, r.dir)
		if err != nil {
			return nil, fmt.Errorf("look for files that are not committed: %w", err)
		}
		if len(changed) > 0 {
			differ := "differ"
			if len(changed) == 1 {
				differ = "differs"
			}
			r.say("warning: %s %s from commit %s, which the release will name: %s", command.Plural(len(changed), "file"), differ, short(*d.ciCommit),
				strings.Join(changed[:min(len(changed), listMax)], ", "))
		}
	}
	if err := r.evaluate(ctx, d, flake); err != nil {
		return nil, err
	}
	if err := r.dropExpiredPins(d); err != nil {
		return nil, err
	}
	r.keepOwnHosts(d)
	roundSoaks(d)
	lowered, err := fleet.LowerPolicies(d.doc)
	if err != nil {
		return nil, err
	}
	for _, l := range lowered {
		r.say("wave %d of policy %s: its selector is signed as a list of %s, since a signed document has neither `and` nor `not`",
			l.Wave, l.Policy, command.Plural(l.Hosts, "host"))
	}
	if err := r.closures(ctx, d, flake); err != nil {
		return nil, err
	}
	if err := r.check(d); err != nil {
		return nil, err
	}
	if !r.c.Bool("dry-run") {
		if err := r.push(ctx, d); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// evaluate reads the declaration and the two lists, from Nix or from files.
func (r *releaser) evaluate(ctx context.Context, d *draft, flake string) error {
	raw, err := r.source(ctx, "fleet-file", func() ([]byte, error) {
		ref, attr, ok := strings.Cut(r.c.String("fleet-resolved-attr"), "#")
		if !ok {
			return nil, command.Usage("", "--fleet-resolved-attr must be FLAKE#ATTRIBUTE")
		}
		if !r.c.IsSet("fleet-resolved-attr") {
			ref = flake
		}
		r.say("evaluating %s#%s", ref, attr)
		raw, err := r.nix().Eval(ctx, ref, attr)
		return raw, command.Hinted(err, "%s", withoutNix(err, "nix eval --json "+shellWord(ref+"#"+attr)+" shows it by itself; --build-flake names the fleet's flake"))
	})
	if err != nil {
		return fmt.Errorf("read the fleet's declaration: %w", err)
	}
	if d.doc, err = object(raw); err != nil {
		return fmt.Errorf("read the fleet's declaration: %w", err)
	}
	for _, list := range []struct {
		name string
		into **[]any
	}{{"revocations", &d.revocations}, {"bootstrap-nonces", &d.nonces}} {
		attr := r.c.String(list.name + "-attr")
		if attr == "" && r.c.String(list.name+"-file") == "" {
			continue
		}
		raw, err := r.source(ctx, list.name+"-file", func() ([]byte, error) { return r.nix().Eval(ctx, flake, attr) })
		if err != nil {
			return fmt.Errorf("read the list of %s: %w", list.name, err)
		}
		canonical, err := pki.Canonicalize(raw)
		if err != nil {
			return fmt.Errorf("read the list of %s: %w", list.name, err)
		}
		entries := []any{}
		if err := json.Unmarshal(canonical, &entries); err != nil {
			return command.Hinted(fmt.Errorf("read the list of %s: %w", list.name, err), "the attribute must yield the bare list")
		}
		if entries == nil {
			return fmt.Errorf("read the list of %s: it is null", list.name)
		}
		*list.into = &entries
	}
	return nil
}

// withoutNix is the hint of a machine that has no Nix, or another one.
func withoutNix(err error, other string) string {
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
		return "name the directory of Nix with --nix-bin-dir, or hand on what was made elsewhere: --fleet-file FILE --closures FILE"
	}
	return other
}

// source reads the file of a flag, or asks Nix when there is none.
func (r *releaser) source(_ context.Context, flag string, eval func() ([]byte, error)) ([]byte, error) {
	if path := r.c.String(flag); path != "" {
		return readFile(path, pki.MaxDocument)
	}
	return eval()
}

// object reads one JSON object by the rules of canonical JSON.
func object(raw []byte) (map[string]any, error) {
	canonical, err := pki.Canonicalize(raw)
	if err != nil {
		return nil, err
	}
	var doc map[string]any
	if err := json.Unmarshal(canonical, &doc); err != nil {
		return nil, err
	}
	if doc == nil {
		return nil, errors.New("it is null")
	}
	return doc, nil
}

func (d *draft) host(name string) map[string]any {
	hosts, _ := d.doc["hosts"].(map[string]any)
	host, _ := hosts[name].(map[string]any)
	return host
}

func (d *draft) hostNames() []string {
	hosts, _ := d.doc["hosts"].(map[string]any)
	return sortedKeys(hosts)
}

// fullCommit: a pin becomes part of a flake's URL, where a branch would move and
// anything else would be read as more of the URL.
var fullCommit = regexp.MustCompile(`^[0-9a-f]{40}$`)

// pinOf reads a host's pin: its commit, and when it ends.
func (d *draft) pinOf(name string) (commit string, expires *time.Time, ok bool, err error) {
	pin, ok := d.host(name)["pin"].(map[string]any)
	if !ok {
		return "", nil, false, nil
	}
	commit, _ = pin["commit"].(string)
	if !fullCommit.MatchString(commit) {
		return "", nil, true, command.Hinted(fmt.Errorf("pin of %s: %.80q is no full commit of 40 hexadecimal digits", name, commit), "git rev-parse REV in the fleet's repository prints it")
	}
	if text, isText := pin["expiresAt"].(string); isText {
		at, err := pki.ParseTimestamp(text)
		if err != nil {
			return "", nil, true, fmt.Errorf("pin of %s: expiresAt: %w", name, err)
		}
		expires = &at.Time
	}
	return commit, expires, true, nil
}

func (r *releaser) dropExpiredPins(d *draft) error {
	for _, name := range d.hostNames() {
		_, expires, pinned, err := d.pinOf(name)
		if err != nil {
			return err
		}
		if pinned && expires != nil && !r.now.Before(*expires) {
			delete(d.host(name), "pin")
			r.summary.ExpiredPins = append(r.summary.ExpiredPins, name)
			r.say("the pin of %s has expired: it follows its channel again", name)
		}
	}
	return nil
}

// keepOwnHosts takes hosts of other channels out of a channel's waves. v1's mkFleet
// resolves a wave over the whole fleet, and such a host would never soak there.
func (r *releaser) keepOwnHosts(d *draft) {
	waves, _ := d.doc["waves"].(map[string]any)
	for _, channel := range sortedKeys(waves) {
		list, _ := waves[channel].([]any)
		for i, w := range list {
			wave, _ := w.(map[string]any)
			hosts, _ := wave["hosts"].([]any)
			kept := []any{}
			for _, h := range hosts {
				name, _ := h.(string)
				if other, declared := d.host(name)["channel"].(string); declared && other != channel {
					r.say("wave %d of %s: %s is on channel %s and is left out", i, channel, name, other)
					continue
				}
				kept = append(kept, h)
			}
			if len(kept) < len(hosts) {
				wave["hosts"] = kept
			}
		}
	}
}

// roundSoaks writes the minutes of a wave that declares seconds: their ceiling,
// for readers that know only minutes (additions.md §3).
func roundSoaks(d *draft) {
	round := func(waves any) {
		list, _ := waves.([]any)
		for _, w := range list {
			wave, _ := w.(map[string]any)
			if seconds, ok := wave["soakSeconds"].(float64); ok {
				wave["soakMinutes"] = math.Ceil(seconds / 60)
			}
		}
	}
	waves, _ := d.doc["waves"].(map[string]any)
	for _, list := range waves {
		round(list)
	}
	policies, _ := d.doc["rolloutPolicies"].(map[string]any)
	for _, p := range policies {
		policy, _ := p.(map[string]any)
		round(policy["waves"])
	}
}

// closures finds each host's closure: given in a file, written in the
// declaration already (--fleet-file alone), or built.
func (r *releaser) closures(ctx context.Context, d *draft, flake string) error {
	switch {
	case r.c.String("closures") != "":
		raw, err := readFile(r.c.String("closures"), pki.MaxDocument)
		if err != nil {
			return fmt.Errorf("read closures: %w", err)
		}
		given, err := object(raw)
		if err != nil {
			return fmt.Errorf("read closures %s: %w", r.c.String("closures"), err)
		}
		for _, name := range sortedKeys(given) {
			path, ok := given[name].(string)
			if !ok {
				return fmt.Errorf("read closures: %s is not a store path", name)
			}
			if d.host(name) == nil {
				return command.Hinted(fmt.Errorf("closures name host %s, which the fleet does not declare", name), "declared: %s", strings.Join(d.hostNames(), ", "))
			}
			d.closures[name] = path
		}
		if wanted := r.c.String("hosts"); wanted != "auto" {
			names, err := selectHosts(wanted, sortedKeys(d.closures))
			if err != nil {
				return err
			}
			maps.DeleteFunc(d.closures, func(name, _ string) bool { return !slices.Contains(names, name) })
		}
	case r.c.String("fleet-file") != "":
		return nil
	default:
		if err := r.build(ctx, d, flake); err != nil {
			return err
		}
	}
	for name, path := range d.closures {
		base := filepath.Base(path)
		if !fleet.ValidClosure(base) {
			return fmt.Errorf("closure of %s: %q is not the name of a store path", name, path)
		}
		d.host(name)["closureHash"] = base
	}
	return nil
}

// nix is the Nix of this machine, whose words become progress.
func (r *releaser) nix() nixops.CI {
	return nixops.CI{
		Nix: r.c.String("nix-bin-dir"), NixConfDir: r.c.String("nix-conf-dir"), Store: r.c.String("store"), Roots: r.roots,
		Progress: func(line string) { r.say("nix: %s", line) },
	}
}

// selectHosts reads --hosts: auto, auto:exclude=a,b or a,b.
func selectHosts(wanted string, known []string) ([]string, error) {
	if wanted == "auto" {
		return known, nil
	}
	excluded, isExclusion := strings.CutPrefix(wanted, "auto:exclude=")
	named := strings.Split(excluded, ",")
	for i, name := range named {
		named[i] = strings.TrimSpace(name)
		if !slices.Contains(known, named[i]) {
			return nil, &command.Error{Err: fmt.Errorf("--hosts: there is no host %q", named[i]), Hint: "there are: " + strings.Join(known, ", "), Code: 1}
		}
	}
	if !isExclusion {
		return named, nil
	}
	return slices.DeleteFunc(slices.Clone(known), func(name string) bool { return slices.Contains(named, name) }), nil
}

// build builds the wanted hosts side by side. The first failure ends it: a
// release of half a fleet is not what was asked for.
func (r *releaser) build(ctx context.Context, d *draft, flake string) error {
	found, err := r.nix().ListHosts(ctx, flake)
	if err != nil {
		return command.Hinted(fmt.Errorf("list hosts of %s: %w", flake, err), "%s", withoutNix(err, "nix flake show "+shellWord(flake)+" shows it by itself"))
	}
	byName := map[string]nixops.FlakeHost{}
	for _, h := range found {
		if d.host(h.Name) == nil {
			r.say("warning: the flake has a system %s that the fleet does not declare", h.Name)
			continue
		}
		byName[h.Name] = h
	}
	names, err := selectHosts(r.c.String("hosts"), sortedKeys(byName))
	if err != nil {
		return err
	}
	sources := make([]string, len(names))
	for i, name := range names {
		if sources[i], err = r.sourceOf(d, name, flake); err != nil {
			return err
		}
	}
	paths := make([]string, len(names))
	var done atomic.Int32
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(r.c.Int("jobs"))
	for i, name := range names {
		group.Go(func() error {
			started := time.Now()
			r.say("building %s", name)
			path, err := r.nix().Build(ctx, sources[i], byName[name])
			if err != nil {
				return command.Hinted(fmt.Errorf("build %s: %w", name, err), "%s", withoutNix(err, "what Nix said is above; --hosts "+name+" builds this host alone"))
			}
			paths[i] = path
			r.say("built %s in %s (%d of %d): %s", name, time.Since(started).Round(time.Second), done.Add(1), len(names), path)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for i, name := range names {
		d.closures[name] = paths[i]
	}
	return nil
}

// sourceOf is the flake a host is built from: a pinned host comes from its
// commit.
func (r *releaser) sourceOf(d *draft, name, flake string) (string, error) {
	commit, _, pinned, err := d.pinOf(name)
	if err != nil || !pinned || d.ciCommit != nil && commit == *d.ciCommit {
		return flake, err
	}
	url := r.c.String("pin-source-url")
	if url == "" {
		return "", &command.Error{Err: fmt.Errorf("host %s is pinned to %s, and --pin-source-url does not say where that is", name, commit), Hint: "--pin-source-url git+https://forge.example.com/fleet.git", Code: 1}
	}
	joint := "?"
	if strings.Contains(url, "?") {
		joint = "&"
	}
	return url + joint + "rev=" + commit, nil
}

// check refuses a declaration that would do harm and prints what is odd.
func (r *releaser) check(d *draft) error {
	raw, err := pki.Marshal(d.doc)
	if err != nil {
		return fmt.Errorf("encode the fleet: %w", err)
	}
	f, err := fleet.ParseFleet(raw)
	if err != nil {
		return fmt.Errorf("the fleet's declaration: %w", err)
	}
	var refused []string
	for _, p := range fleet.Check(f) {
		if p.Fatal {
			refused = append(refused, p.String())
			continue
		}
		r.say("warning: %s", p)
	}
	if len(refused) > 0 {
		return command.Hinted(fmt.Errorf("the fleet's declaration has %d problems:\n  - %s", len(refused), strings.Join(refused, "\n  - ")), "mend the declaration and release again")
	}
	return nil
}

// trustOfHosts refuses a release that brings a host a trust.json which cannot
// verify this very release: after the switch the host would believe nobody.
func (r *releaser) trustOfHosts(d *draft, body, sig []byte) error {
	for _, name := range sortedKeys(d.closures) {
		trust, err := r.trustOf(d, name)
		if trust == nil && err == nil {
			continue
		}
		if err == nil {
			_, _, err = verified(&trust.CIReleaseKey, body, sig, time.Now(), defaultWindow, fleet.ParseFleet)
		}
		if err != nil {
			return command.Coded(3, command.Hinted(fmt.Errorf("host %s would get a trust.json that does not verify this release: %w", name, err),
				"keep the present release key in nixfleet.trust.ciReleaseKey, as current or previous, until every host has switched"))
		}
	}
	return nil
}

// trustOf is the trust.json that a host's new system brings, nil when it is not
// built here or brings none.
func (r *releaser) trustOf(d *draft, name string) (*pki.Trust, error) {
	closure := d.closures[name]
	if !filepath.IsAbs(closure) {
		return nil, nil
	}
	if store := r.c.String("store"); filepath.IsAbs(store) {
		closure = filepath.Join(store, closure) // a store in a directory
	}
	data, err := os.ReadFile(filepath.Join(closure, "etc/nixfleet/agent/trust.json"))
	if err != nil {
		return nil, nil
	}
	trust, warnings, err := pki.ParseTrust(data)
	for _, w := range warnings {
		if !r.warned[w] { // the same file is in every system
			r.warned[w] = true
			r.say("warning: the trust.json that %s brings: %s", name, w)
		}
	}
	return trust, err
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
