package cp

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
)

const fetchTimeout = 15 * time.Second

// HTTPConfig names the v1 URLs of a release.
type HTTPConfig struct {
	Fleet, Revocations, Nonces pair
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

// NewHTTPSource reads a release from pairs of URLs. A pair that was torn by an
// upload in between does not verify and is read again at the next poll.
func NewHTTPSource(cfg HTTPConfig) Source {
	return &httpSource{HTTPConfig: cfg, client: &http.Client{Timeout: fetchTimeout}, last: map[string]cached{}}
}

func (s *httpSource) String() string { return s.Fleet.artifact }

func (s *httpSource) Fetch(ctx context.Context, known string) (Snapshot, error) {
	files := memory{}
	var all []byte
	for _, part := range []struct {
		name string
		pair pair
	}{{fleet.FleetName, s.Fleet}, {fleet.RevocationsName, s.Revocations}, {fleet.NoncesName, s.Nonces}} {
		if !part.pair.given() {
			continue
		}
		for suffix, url := range map[string]string{"": part.pair.artifact, fleet.SignatureSuffix: part.pair.signature} {
			body, err := s.get(ctx, url, part.pair.tokenFile)
			if err != nil {
				return Snapshot{}, err
			}
			files[part.name+suffix] = body
		}
		all = append(append(all, files[part.name]...), files[part.name+fleet.SignatureSuffix]...)
	}
	revision := pki.HashHex(all)
	return Snapshot{FS: files, Revision: revision, Unchanged: revision == known}, nil
}

func (s *httpSource) get(ctx context.Context, url, tokenFile string) ([]byte, error) {
	last := s.last[url]
	body, etag, err := fetch(ctx, s.client, url, tokenFile, last.etag)
	if errors.Is(err, errNotModified) {
		return last.body, nil
	}
	if err == nil {
		s.last[url] = cached{etag, body}
	}
	return body, err
}

var errNotModified = errors.New("not modified")

// fetch gets one bounded document, with a bearer token that is read anew.
func fetch(ctx context.Context, client *http.Client, url, tokenFile, etag string) (body []byte, newTag string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, "", fmt.Errorf("fetch %s: %w", url, err)
	}
	if tokenFile != "" {
		token, err := secretFile(tokenFile)
		if err != nil {
			return nil, "", err
		}
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if etag != "" {
		req.Header.Set("If-None-Match", etag)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, "", fmt.Errorf("fetch %s: %w", url, err)
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusNotModified:
		return nil, "", errNotModified
	default:
		return nil, "", fmt.Errorf("fetch %s: answered %s", url, resp.Status)
	}
	if body, err = readBounded(resp.Body, url); err != nil {
		return nil, "", err
	}
	return body, resp.Header.Get("ETag"), nil
}
