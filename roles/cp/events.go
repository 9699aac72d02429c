package cp

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/command"
	"nixfleet/roles/protocol"
	"nixfleet/roles/protocol/client"
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
	err = v.follow(c.Context(), client.EventQuery{After: after, Rollout: only, Past: !follow}, streamed{c.w})
	if err != nil && c.Context().Err() == nil {
		v.log.Error().Err(err).Msg("events not sent")
	}
	return written{}, nil
}

// follower is told of the event log as it grows.
type follower interface {
	// lines takes a page of the log, which may be empty.
	lines(page []protocol.Event) error
	// alive is called now and then when there is nothing to tell.
	alive() error
}

// follow tells a follower of the event log, until it is gone, we stop, or it is not allowed to
// any more.
func (v *views) follow(ctx context.Context, q client.EventQuery, to follower) error {
	caller, _ := ctx.Value(identityKey).(pki.Identity)
	mine := v.door.scopesOf(caller)
	for {
		more := v.feed.wait()
		page, err := v.store.Events(ctx, q.Rollout, q.After, eventPage)
		if err == nil {
			err = to.lines(mine.events(page))
		}
		if err != nil {
			return err
		}
		if len(page) > 0 {
			q.After = page[len(page)-1].Seq
		}
		if len(page) == eventPage {
			continue
		}
		if q.Past || !v.rest(ctx, more, to) {
			return nil
		}
	}
}

// streamed is a follower behind a response of server-sent events.
type streamed struct{ w http.ResponseWriter }

func (s streamed) lines(page []protocol.Event) error {
	control := http.NewResponseController(s.w)
	_ = control.SetWriteDeadline(time.Now().Add(requestTimeout))
	for _, e := range page {
		doc, err := json.Marshal(e)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(s.w, "id: %d\ndata: %s\n\n", e.Seq, command.VisibleJSON(doc)); err != nil {
			return err
		}
	}
	return control.Flush()
}

func (s streamed) alive() error {
	_, err := fmt.Fprint(s.w, ": still here\n\n")
	return err
}

// rest waits for the next line, or says after a while that we are still there;
// false means that the following ends.
func (v *views) rest(ctx context.Context, more <-chan struct{}, to follower) bool {
	select {
	case <-more:
	case <-time.After(eventKeepalive):
		if to.alive() != nil {
			return false
		}
	case <-ctx.Done():
		return false
	case <-v.stopping:
		return false
	}
	_, err := v.door.authorize(ctx)
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
