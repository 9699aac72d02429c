package cp

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/cp/source"
)

// slowSource answers each request after a second.
type slowSource struct {
	files map[string][]byte
	asked atomic.Int32
}

func (s *slowSource) RoundTrip(r *http.Request) (*http.Response, error) {
	s.asked.Add(1)
	time.Sleep(time.Second)
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{},
		Body: io.NopCloser(bytes.NewReader(s.files[strings.TrimPrefix(r.URL.Path, "/")]))}, nil
}

// TestAWaveOfAgentsFetchesAManifestOnce_C19: the forge is not asked by all hosts at once.
func TestAWaveOfAgentsFetchesAManifestOnce_C19(t *testing.T) {
	e := serialEstate(t, "a")
	at(t, func(t *testing.T) {
		s := e.primed(t)
		body := []byte(`{"channel":"before"}`)
		id := pki.HashHex(body)
		forge := &slowSource{files: map[string][]byte{fleet.ManifestName(id): body,
			fleet.ManifestName(id) + ".sig": make([]byte, 64)}}
		s.handlers.documents.fetcher = &http.Client{Transport: forge}
		s.cfg.Rollouts = source.Pair{Artifact: "http://forge/rollouts/{rolloutId}.json",
			Signature: "http://forge/rollouts/{rolloutId}.json.sig"}
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() {
				if a, _, err := s.handlers.documents.findManifest(id); err != nil || !bytes.Equal(a.Body, body) {
					t.Errorf("answer %v %q", err, a.Body)
				}
			})
		}
		all.Wait()
		if n := forge.asked.Load(); n != 2 {
			t.Errorf("50 agents made %d requests, not 2", n)
		}
		// Nothing is remembered: what the source has lost is lost.
		forge.files = nil
		_, _, err := s.handlers.documents.findManifest(id)
		if refusal := (*Refusal)(nil); !errors.As(err, &refusal) || refusal.Status != http.StatusBadGateway {
			t.Errorf("once the source has lost it: %v, want 502", err)
		}
	})
}

// A cache that hangs holds some questions, and the others are told when to ask again.
func TestASaturatedCacheIsAskedLater(t *testing.T) {
	e := newEstate(t, "a")
	hang := make(chan struct{})
	cache := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { <-hang }))
	t.Cleanup(cache.Close)
	s := e.primed(t, func(c *Config) { c.ClosureUpstream = cache.URL })
	d := s.handlers.documents
	ask := func() (*httptest.ResponseRecorder, error) {
		r := httptest.NewRequest("GET", "/", nil)
		r.SetPathValue("hash", strings.Repeat("0", 32))
		w := httptest.NewRecorder()
		_, err := d.closure(&call{Request: r, w: w})
		return w, err
	}
	var asked sync.WaitGroup
	for range maxAsked {
		asked.Go(func() { ask() })
	}
	for len(d.asked) < maxAsked {
		time.Sleep(time.Millisecond)
	}
	var refusal *Refusal
	if w, err := ask(); !errors.As(err, &refusal) || refusal.Status != 503 || w.Header().Get("Retry-After") == "" {
		t.Errorf("beyond the bound: %v, Retry-After %q", err, w.Header().Get("Retry-After"))
	}
	close(hang)
	asked.Wait()
	if w, err := ask(); err != nil || w.Code != 200 {
		t.Errorf("afterwards: %d %v", w.Code, err)
	}
}
