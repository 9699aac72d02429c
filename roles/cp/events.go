package cp

import (
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet/nixops/fleet"
)

const (
	eventPage = 500
	// eventKeepalive tells a follower and the proxies between that we are there.
	eventKeepalive = 15 * time.Second
)

// events streams the event log as server-sent events, from the first line
// after the given sequence number on, until the caller leaves. rollout=ID asks
// for that rollout alone, follow=false for what there is now.
func (s *server) events(w http.ResponseWriter, r *http.Request) {
	if s.store == nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	after, err := followFrom(r)
	if err != nil {
		http.Error(w, "after: "+err.Error(), http.StatusBadRequest)
		return
	}
	only, follow := r.URL.Query().Get("rollout"), r.URL.Query().Get("follow") != "false"
	if only != "" && !fleet.ValidRolloutID(only) {
		http.Error(w, "rollout: not 64 hexadecimal digits", http.StatusBadRequest)
		return
	}
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Time{})
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	for {
		more := s.feed.wait()
		lines, err := s.store.Events(r.Context(), only, after, eventPage)
		if err != nil {
			s.log.Error().Err(err).Msg("events not read")
			return
		}
		_ = control.SetWriteDeadline(time.Now().Add(requestTimeout))
		for _, e := range lines {
			doc, err := json.Marshal(e)
			if err != nil {
				s.log.Error().Err(err).Msg("event not encoded")
				return
			}
			if _, err := fmt.Fprintf(w, "id: %d\ndata: %s\n\n", e.Seq, doc); err != nil {
				return
			}
			after = e.Seq
		}
		if err := control.Flush(); err != nil {
			return
		}
		if len(lines) == eventPage {
			continue
		}
		if !follow {
			return
		}
		select {
		case <-more:
		case <-time.After(eventKeepalive):
			if _, err := fmt.Fprint(w, ": still here\n\n"); err != nil {
				return
			}
		case <-r.Context().Done():
			return
		case <-s.stopping:
			return
		}
		if _, err := s.authorize(r.Context()); err != nil {
			return
		}
	}
}

// followFrom is the sequence number that the caller has seen last; zero: none.
// A browser that connects again says it in the header.
func followFrom(r *http.Request) (int64, error) {
	last := r.URL.Query().Get("after")
	if again := r.Header.Get("Last-Event-ID"); again != "" {
		last = again
	}
	if last == "" {
		return 0, nil
	}
	return strconv.ParseInt(last, 10, 64)
}

// feed tells followers of the event log that there is more.
type feed struct {
	mu   sync.Mutex
	more chan struct{}
}

func newFeed() *feed { return &feed{more: make(chan struct{})} }

// wait returns a channel that closes with the next announcement.
func (f *feed) wait() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.more
}

func (f *feed) announce() {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.more)
	f.more = make(chan struct{})
}
