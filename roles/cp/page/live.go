package page

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"nixfleet/roles/protocol"
	"nixfleet/roles/protocol/client"
)

// stillHere is how often a browser is told that the stream goes on.
const stillHere = 15 * time.Second

// stream tells a browser the numbers of events as they happen. The browser then asks for its
// page anew: what happened is not in the stream.
func (p *Page) stream(w http.ResponseWriter, r *http.Request) {
	select {
	case p.live <- struct{}{}:
		defer func() { <-p.live }()
	default:
		http.Error(w, "too many pages are open", http.StatusServiceUnavailable)
		return
	}
	if _, err := p.plane.Whoami(r.Context()); err != nil {
		http.Error(w, "not allowed", http.StatusForbidden)
		return
	}
	after, err := strconv.ParseInt(r.URL.Query().Get("after"), 10, 64)
	if last := r.Header.Get("Last-Event-ID"); last != "" {
		after, err = strconv.ParseInt(last, 10, 64)
	}
	if err != nil || after < 0 {
		http.Error(w, "after is not a number", http.StatusBadRequest)
		return
	}
	protect(w.Header())
	w.Header().Set("Content-Type", "text/event-stream")
	p.tell(w, r, after)
}

func (p *Page) tell(w http.ResponseWriter, r *http.Request, after int64) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	happened := make(chan int64)
	go func() {
		defer close(happened)
		// However it ends, the browser connects again.
		_ = p.plane.Events(ctx, client.EventQuery{After: after}, func(e protocol.Event) error {
			select {
			case happened <- e.Seq:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	// Events stops at cancel, and its goroutine is waited for.
	defer func() {
		cancel()
		for range happened {
		}
	}()
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Time{}) // the stream has no end
	beat := time.NewTicker(stillHere)
	defer beat.Stop()
	line := ": hello\n\n"
	for {
		_ = control.SetWriteDeadline(time.Now().Add(answerTimeout))
		if _, err := fmt.Fprint(w, line); err != nil || control.Flush() != nil {
			return
		}
		select {
		case seq, more := <-happened:
			if !more {
				return
			}
			line = fmt.Sprintf("id: %d\ndata: %d\n\n", seq, seq)
		case <-beat.C:
			line = ": still here\n\n"
		case <-ctx.Done():
			return
		}
	}
}
