package cp

import (
	"bytes"
	"errors"
	"io"
	"net/http"
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
