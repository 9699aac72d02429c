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
func (v *views) events(c *call) (any, error) {
	if err := v.store.Err(); err != nil {
		return nil, err
	}
	after, err := followFrom(c.Request)
	if err != nil {
		return nil, badRequest(http.StatusBadRequest, "after: %v", err)
	}
	only, follow := c.URL.Query().Get("rollout"), c.URL.Query().Get("follow") != "false"
	if only != "" && !fleet.ValidRolloutID(only) {
		return nil, badRequest(http.StatusBadRequest, "rollout: not 64 hexadecimal digits")
	}
	_ = http.NewResponseController(c.w).SetReadDeadline(time.Time{})
	c.w.Header().Set("Content-Type", "text/event-stream")
	c.w.Header().Set("Cache-Control", "no-store")
	for {
		more := v.feed.wait()
		read, last, err := v.page(c, only, after)
		if err != nil {
			if c.Context().Err() == nil {
				v.log.Error().Err(err).Msg("events not sent")
			}
			return written{}, nil
		}
		after = last
		if read == eventPage {
			continue
		}
		if !follow || !v.rest(c, more) {
			return written{}, nil
		}
	}
}

// page sends a page of the event log, and says how many lines it had and which
// was the last.
func (v *views) page(c *call, only string, after int64) (lines int, last int64, err error) {
	page, err := v.store.Events(c.Context(), only, after, eventPage)
	if err != nil {
		return 0, after, err
	}
	control := http.NewResponseController(c.w)
	_ = control.SetWriteDeadline(time.Now().Add(requestTimeout))
	for _, e := range page {
		doc, err := json.Marshal(e)
		if err != nil {
			return 0, after, err
		}
		if _, err := fmt.Fprintf(c.w, "id: %d\ndata: %s\n\n", e.Seq, doc); err != nil {
			return 0, after, err
		}
		after = e.Seq
	}
	return len(page), after, control.Flush()
}

// rest waits for the next line, or says after a while that we are still there;
// false means that the stream ends.
func (v *views) rest(c *call, more <-chan struct{}) bool {
	select {
	case <-more:
	case <-time.After(eventKeepalive):
		if _, err := fmt.Fprint(c.w, ": still here\n\n"); err != nil {
			return false
		}
	case <-c.Context().Done():
		return false
	case <-v.stopping:
		return false
	}
	_, err := v.door.authorize(c.Context())
	return err == nil
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
