package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"nixfleet/nixops/fleet"
)

const (
	FetchTimeout = 15 * time.Second
	// httpAttempts bounds how often a pair that changed while it was read is
	// read again at once.
	httpAttempts = 3
	maxRedirects = 5
)

// Pair is a document and its signature at two URLs, as the v1 sources have it.
type Pair struct{ Artifact, Signature, TokenFile string }

// Given says whether a URL of the pair is configured.
func (p Pair) Given() bool { return p.Artifact != "" || p.Signature != "" }

// Check is nil for two URLs or none; name is what the flags begin with.
func (p Pair) Check(name string) error {
	if (p.Artifact == "") != (p.Signature == "") {
		return fmt.Errorf("--%s-artifact-url and --%s-signature-url are given together or not at all", name, name)
	}
	return nil
}

// HTTPConfig names the v1 URLs of a release.
type HTTPConfig struct {
	Fleet, Revocations, Nonces Pair
}

type httpSource struct {
	HTTPConfig
	client *http.Client
	last   map[string]cached // by URL
}

type cached struct {
	etag string
	body []byte
}

// NewHTTP reads a release from pairs of URLs. A pair that changes while
// it is read is read again. One that an upload has replaced by half does not
// verify; it is read again at the next poll.
func NewHTTP(cfg HTTPConfig) Source {
	return &httpSource{HTTPConfig: cfg, client: &http.Client{Timeout: FetchTimeout}, last: map[string]cached{}}
}

func (s *httpSource) String() string { return shownURL(s.Fleet.Artifact) }

func (s *httpSource) Fetch(ctx context.Context, known string) (Fetched, error) {
	var files Memory
	for range httpAttempts {
		var changed bool
		var err error
		if files, changed, err = s.read(ctx); err != nil {
			return Fetched{}, err
		}
		if !changed {
			break
		}
		// The documents once more: nothing new means that none was replaced while
		// its signature was on the way.
		if changed, err = s.again(ctx); err != nil {
			return Fetched{}, err
		}
		if !changed {
			break
		}
	}
	revision := files.revision()
	if revision == known {
		return Fetched{Revision: revision, Unchanged: true}, nil
	}
	return Fetched{FS: files, Revision: revision}, nil
}

func (s *httpSource) parts(each func(name string, p Pair) error) error {
	for _, part := range []struct {
		name string
		pair Pair
	}{{fleet.FleetName, s.Fleet}, {fleet.RevocationsName, s.Revocations}, {fleet.NoncesName, s.Nonces}} {
		if part.pair.Given() {
			if err := each(part.name, part.pair); err != nil {
				return err
			}
		}
	}
	return nil
}

// read gets every document and right after it its signature.
func (s *httpSource) read(ctx context.Context) (files Memory, changed bool, err error) {
	files = Memory{}
	err = s.parts(func(name string, p Pair) error {
		body, bodyChanged, err := s.get(ctx, p.Artifact, p.TokenFile, fleet.MaxSize(name))
		if err != nil {
			return err
		}
		sig, sigChanged, err := s.get(ctx, p.Signature, p.TokenFile, fleet.MaxSize(name+fleet.SignatureSuffix))
		if err != nil {
			return err
		}
		files[name], files[name+fleet.SignatureSuffix] = body, sig
		changed = changed || bodyChanged || sigChanged
		return nil
	})
	return files, changed, err
}

// again reports whether a document has changed since it was read.
func (s *httpSource) again(ctx context.Context) (changed bool, err error) {
	err = s.parts(func(name string, p Pair) error {
		_, different, err := s.get(ctx, p.Artifact, p.TokenFile, fleet.MaxSize(name))
		changed = changed || different
		return err
	})
	return changed, err
}

// get is the document at a URL and whether it differs from the last answer.
func (s *httpSource) get(ctx context.Context, url, tokenFile string, limit int) (body []byte, changed bool, err error) {
	last, had := s.last[url]
	body, etag, err := Get(ctx, s.client, url, tokenFile, last.etag, limit)
	if errors.Is(err, errNotModified) {
		return last.body, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	s.last[url] = cached{etag, body}
	return body, !had || !bytes.Equal(body, last.body), nil
}

var errNotModified = errors.New("not modified")

// Get gets one document of at most limit bytes, with a bearer token that is read anew.
func Get(
	ctx context.Context, client *http.Client, address, tokenFile, etag string, limit int,
) (body []byte, newTag string, err error) {
	shown := shownURL(address)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, "", fmt.Errorf("fetch %s: not a URL", shown)
	}
	if tokenFile != "" {
		token, err := Secret(tokenFile)
		if err != nil {
			return nil, "", err
		}
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if etag != "" {
		req.Header.Set("If-None-Match", etag)
	}
	careful := *client
	careful.CheckRedirect = checkRedirect
	resp, err := careful.Do(req)
	if err != nil {
		// The error of the client repeats the URL with all that may be secret in it.
		if wrapped := (*url.Error)(nil); errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		return nil, "", fmt.Errorf("fetch %s: %w", shown, err)
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusOK:
	case resp.StatusCode == http.StatusNotModified && etag != "":
		return nil, "", errNotModified
	default:
		return nil, "", fmt.Errorf("fetch %s: answered %s", shown, resp.Status)
	}
	if body, err = ReadBounded(resp.Body, shown, limit); err != nil {
		return nil, "", err
	}
	return body, resp.Header.Get("ETag"), nil
}

// checkRedirect follows forges to their storage, never from https to http: the
// token could go with it.
func checkRedirect(req *http.Request, via []*http.Request) error {
	switch {
	case len(via) > maxRedirects:
		return fmt.Errorf("more than %d redirects", maxRedirects)
	case via[len(via)-1].URL.Scheme == "https" && req.URL.Scheme != "https":
		return errors.New("redirected from https to " + req.URL.Scheme)
	}
	return nil
}

// shownURL is a URL without what may be secret in it: user, password, query.
func shownURL(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return "an unreadable URL"
	}
	u.User, u.RawQuery, u.Fragment = nil, "", ""
	return u.String()
}
