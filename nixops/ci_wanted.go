package nixops

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nix-community/go-nix/pkg/narinfo/signature"
	"golang.org/x/sync/errgroup"
)

// Bounds of the questions to a cache. Within one call, Nix asks for several paths at a time.
const (
	askedAtOnce     = 256 // paths that one call asks for
	askingCalls     = 4   // calls that run at the same time
	deliveryTimeout = 30 * time.Minute
	namedProblems   = 10 // paths that an error lists
)

// wantedPath is one path of the release.
type wantedPath struct {
	open map[int]bool         // indexes of the fetchers for which no store with the path was found yet
	at   map[string]*pathInfo // by store, for each store that was asked and has the path
	lost map[string]string    // by store that has the narinfo alone: what is wrong with its NAR
}

// wantedPaths are all paths of a release and the fetchers that fetch them.
type wantedPaths struct {
	fetchers []Fetcher
	keys     [][]signature.PublicKey // of each fetcher
	paths    map[string]*wantedPath
	dest     string
	asked    []string
	failed   []error // the errors of stores that did not answer
}

// wanted lists the paths of the systems, which c.Store must have. It leaves out a fetcher if there is neither a
// destination nor a cache that this machine can ask for it.
func (c CI) wanted(ctx context.Context, d Delivery) (*wantedPaths, error) {
	w := &wantedPaths{paths: map[string]*wantedPath{}, dest: d.Dest}
	numbers := map[string]int{}
	fetchers := map[string]map[int]bool{} // system -> indexes of its fetchers
	for _, s := range d.Systems {
		for _, f := range s.Fetchers {
			if d.Dest == "" && len(remote(f.Caches)) == 0 {
				continue
			}
			id := strings.Join(f.Caches, " ") + "\n" + strings.Join(f.Keys, " ")
			n, known := numbers[id]
			if !known {
				n = len(w.fetchers)
				numbers[id] = n
				w.fetchers = append(w.fetchers, f)
				w.keys = append(w.keys, parseKeys(f.Keys))
			}
			if fetchers[s.Path] == nil {
				fetchers[s.Path] = map[int]bool{}
			}
			fetchers[s.Path][n] = true
		}
	}
	tops := slices.Sorted(maps.Keys(fetchers))
	if len(tops) == 0 {
		return w, nil
	}
	list := c.command(deliveryTimeout, deliveryTimeout, "nix", slices.Concat([]string{"path-info", "--json",
		"--recursive"}, tops)...)
	infos, err := pathInfos(ctx, list)
	if err != nil {
		return nil, fmt.Errorf("read the closures of the release: %w", err)
	}
	if infos == nil {
		d.Say("warning: nix path-info printed nothing, so nixfleet did not verify that the release arrived")
		return w, nil
	}
	for _, top := range tops {
		for path := range closureIn(infos, top) {
			if w.paths[path] == nil {
				w.paths[path] = &wantedPath{open: map[int]bool{}, at: map[string]*pathInfo{},
					lost: map[string]string{}}
			}
			maps.Copy(w.paths[path].open, fetchers[top])
		}
	}
	return w, nil
}

// closureIn follows the references from top and returns every path that it reaches, top included.
func closureIn(infos map[string]*pathInfo, top string) map[string]bool {
	seen := map[string]bool{top: true}
	for todo := []string{top}; len(todo) > 0; todo = todo[1:] {
		info := infos[todo[0]]
		if info == nil {
			continue
		}
		for _, ref := range info.References {
			if !seen[ref] {
				seen[ref] = true
				todo = append(todo, ref)
			}
		}
	}
	return seen
}

// parseKeys parses public keys. It leaves out a text that is not a key, because Nix accepts no signature by it either.
func parseKeys(texts []string) []signature.PublicKey {
	var keys []signature.PublicKey
	for _, text := range texts {
		if key, err := signature.ParsePublicKey(text); err == nil {
			keys = append(keys, key)
		}
	}
	return keys
}

// remote returns the caches that a machine other than the host can ask.
func remote(caches []string) []string {
	var urls []string
	for _, url := range caches {
		scheme, _, _ := strings.Cut(url, "://")
		if slices.Contains([]string{"http", "https", "s3", "ssh", "ssh-ng"}, scheme) {
			urls = append(urls, url)
		}
	}
	return urls
}

// caches returns the remote caches that the fetchers ask, without the destination, each once and in their order.
func (w *wantedPaths) caches() []string {
	var urls []string
	for _, f := range w.fetchers {
		for _, url := range remote(f.Caches) {
			if !slices.Contains(urls, url) && url != w.dest {
				urls = append(urls, url)
			}
		}
	}
	return urls
}

// all returns the paths, sorted.
func (w *wantedPaths) all() []string { return slices.Sorted(maps.Keys(w.paths)) }

// openAt returns the paths that a fetcher of the cache still lacks.
func (w *wantedPaths) openAt(cache string) []string {
	var open []string
	for _, path := range w.all() {
		for n := range w.paths[path].open {
			if slices.Contains(w.fetchers[n].Caches, cache) {
				open = append(open, path)
				break
			}
		}
	}
	return open
}

// ask asks a store for paths. If the store does not answer, ask records the error and returns nil, because another
// store may have every path.
func (c CI) ask(ctx context.Context, d Delivery, w *wantedPaths, store string, paths []string) error {
	if len(paths) == 0 {
		return nil
	}
	if !slices.Contains(w.asked, store) {
		w.asked = append(w.asked, store)
	}
	d.Say("asking %s for %d paths", store, len(paths))
	parts := slices.Collect(slices.Chunk(paths, askedAtOnce))
	answers := make([]map[string]*pathInfo, len(parts))
	err := withoutMemory(func(fresh []string) error {
		var done atomic.Int64
		group, asking := errgroup.WithContext(ctx)
		group.SetLimit(askingCalls)
		for i, part := range parts {
			group.Go(func() error {
				question := c.at(store, slices.Concat([]string{"path-info", "--json"}, part)...)
				question.env = append(question.env, fresh...)
				var err error
				if answers[i], err = pathInfos(asking, question); err != nil {
					return fmt.Errorf("ask %s: %w", store, classify(err))
				}
				if n := done.Add(int64(len(part))); len(parts) > 1 {
					d.Say("%s has answered for %d of %d paths", store, n, len(paths))
				}
				return nil
			})
		}
		return group.Wait()
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		w.failed = append(w.failed, err)
		return nil
	}
	infos := map[string]*pathInfo{}
	for _, answer := range answers {
		maps.Copy(infos, answer)
	}
	return w.take(ctx, d, store, infos)
}

// take records the answers of a store. It asks for the NARs of those paths that the store answers for the first time.
func (w *wantedPaths) take(ctx context.Context, d Delivery, store string, infos map[string]*pathInfo) error {
	fresh := map[string]*pathInfo{}
	for path, info := range infos {
		if p := w.paths[path]; p != nil && info != nil && p.at[store] == nil {
			fresh[path] = info
		}
	}
	lost, err := lostNARs(ctx, store, fresh)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		d.Say("warning: %s cannot be asked whether it has the NARs, so its narinfos are believed: %v", store, err)
	}
	for _, l := range lost {
		w.paths[l.path].lost[store] = l.why
		delete(infos, l.path)
	}
	for path, info := range infos {
		if p := w.paths[path]; p != nil && info != nil {
			w.found(store, path, p, info)
		}
	}
	return nil
}

// found records that a store has a path, and which fetchers can fetch it from there.
func (w *wantedPaths) found(store, path string, p *wantedPath, info *pathInfo) {
	p.at[store] = info
	for n := range p.open {
		serves := store == w.dest || slices.Contains(w.fetchers[n].Caches, store)
		if serves && (len(w.fetchers[n].Keys) == 0 || info.acceptedBy(path, w.keys[n])) {
			delete(p.open, n)
		}
	}
}

// verdict returns an error that lists the paths which a host cannot fetch, or nil if there are none.
func (w *wantedPaths) verdict() error {
	var lines []string
	kind := ErrUnsigned
	for _, path := range w.all() {
		p := w.paths[path]
		if len(p.open) == 0 {
			continue
		}
		if len(p.at) == 0 && kind == ErrUnsigned {
			kind = ErrNotFound
		}
		lines = append(lines, path+": "+p.lack())
	}
	if len(lines) == 0 {
		return nil
	}
	n := len(lines)
	if n > namedProblems {
		lines = append(lines[:namedProblems], fmt.Sprintf("and %d more", n-namedProblems))
	}
	if kind == ErrNotFound && len(w.failed) > 0 {
		kind = ErrUnreachable
	}
	for _, err := range w.failed {
		lines = append(lines, err.Error())
	}
	return fmt.Errorf("%w: hosts cannot fetch %d of the %d paths of the release, after asking %s:\n  - %s",
		kind, n, len(w.paths), strings.Join(w.asked, ", "), strings.Join(lines, "\n  - "))
}

// lack says what a path lacks.
func (p *wantedPath) lack() string {
	if len(p.at) == 0 && len(p.lost) > 0 {
		var stores []string
		for _, store := range slices.Sorted(maps.Keys(p.lost)) {
			stores = append(stores, store+" has its narinfo, but "+p.lost[store])
		}
		return strings.Join(stores, "; ") + " (remove the narinfo there, then it is pushed again)"
	}
	if len(p.at) == 0 {
		return "no store that answered has it"
	}
	var signers []string
	for _, store := range slices.Sorted(maps.Keys(p.at)) {
		for _, sig := range p.at[store].Signatures {
			if name, _, _ := strings.Cut(sig, ":"); !slices.Contains(signers, name) {
				signers = append(signers, name)
			}
		}
	}
	where := strings.Join(slices.Sorted(maps.Keys(p.at)), ", ")
	if len(signers) == 0 {
		return "it is not signed at " + where
	}
	return "it is signed by " + strings.Join(signers, ", ") + " at " + where +
		", and a host that fetches it trusts no such key"
}
