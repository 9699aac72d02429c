package nixops

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// Bounds of the questions for NARs.
const (
	narsAtOnce = 32
	narTimeout = 30 * time.Second // of one question
)

// lostNAR is a path for which a cache has a narinfo without the NAR that it names, or with another one.
type lostNAR struct{ path, why string }

// lostNARs asks a binary cache whether it has the NAR of each path, whole. A narinfo alone proves nothing: an upload
// that was cut off, or a rule that removes old objects, leaves narinfos without their NARs, and nix copy believes the
// narinfo. It asks with HEAD, or looks at the file. It does not know caches of other schemes, nor those that refuse to
// answer this machine; for these, the narinfo is believed and skipped says why.
func lostNARs(ctx context.Context, store string, infos map[string]*pathInfo) (lost []lostNAR, skipped error) {
	base, err := url.Parse(store)
	if err != nil {
		return nil, err
	}
	var look func(ctx context.Context, info *pathInfo) (why string, err error)
	switch base.Scheme {
	case "file":
		look = func(_ context.Context, info *pathInfo) (string, error) { return narInDir(base.Path, info) }
	case "http", "https":
		base.RawQuery, base.Path = "", strings.TrimSuffix(base.Path, "/")+"/"
		client := &http.Client{Timeout: narTimeout, Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, MaxIdleConnsPerHost: narsAtOnce, IdleConnTimeout: narTimeout,
		}}
		defer client.CloseIdleConnections()
		look = func(ctx context.Context, info *pathInfo) (string, error) { return narAtURL(ctx, client, base, info) }
	default:
		return nil, nil
	}
	var mu sync.Mutex
	answered := 0
	group, asking := errgroup.WithContext(ctx)
	group.SetLimit(narsAtOnce)
	for _, path := range slices.Sorted(maps.Keys(infos)) {
		info := infos[path]
		if info == nil || info.URL == "" {
			continue
		}
		group.Go(func() error {
			why, err := look(asking, info)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil:
				return err
			case why != "":
				lost = append(lost, lostNAR{path, why})
			default:
				answered++
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	// A cache that says so of everything means this machine, or HEAD.
	if answered == 0 && slices.ContainsFunc(lost, func(l lostNAR) bool { return strings.HasSuffix(l.why, forbidden) }) {
		return nil, fmt.Errorf("%s", lost[0].why)
	}
	return lost, nil
}

// forbidden ends the words about a NAR that the cache denies. A bucket that nobody may list answers so for what it
// does not have.
const forbidden = "403 Forbidden"

// narInDir looks for a NAR in a directory.
func narInDir(dir string, info *pathInfo) (string, error) {
	file, err := os.Stat(filepath.Join(dir, filepath.FromSlash(info.URL)))
	switch {
	case os.IsNotExist(err):
		return "it has no " + info.URL, nil
	case err != nil:
		return "", err
	}
	return info.misfit(file.Size()), nil
}

// narAtURL asks for a NAR over http.
func narAtURL(ctx context.Context, client *http.Client, base *url.URL, info *pathInfo) (string, error) {
	at, err := base.Parse(info.URL)
	if err != nil {
		return fmt.Sprintf("its narinfo names %q", info.URL), nil
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodHead, at.String(), nil)
	if err != nil {
		return "", err
	}
	request.Header.Set("Accept-Encoding", "identity") // the size is that of the file
	answer, err := client.Do(request)
	if err != nil {
		return "", err
	}
	answer.Body.Close()
	switch {
	case answer.StatusCode == http.StatusOK:
		return info.misfit(answer.ContentLength), nil
	case answer.StatusCode == http.StatusNotFound || answer.StatusCode == http.StatusGone ||
		answer.StatusCode == http.StatusForbidden:
		return fmt.Sprintf("for %s it answers %s", info.URL, answer.Status), nil
	}
	return "", fmt.Errorf("HEAD %s: %s", at.Redacted(), answer.Status)
}

// misfit says how the size of a NAR differs from what its narinfo says; a negative size is not known.
func (i *pathInfo) misfit(size int64) string {
	if size < 0 || i.DownloadSize == 0 || uint64(size) == i.DownloadSize {
		return ""
	}
	return fmt.Sprintf("its %s has %d bytes instead of %d", i.URL, size, i.DownloadSize)
}
