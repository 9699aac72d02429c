package cp

import (
	"errors"
	"net/http"
	"time"

	"nixfleet/roles/protocol"
	"nixfleet/store"
)

// readiness is what the control plane can do now.
type readiness struct {
	store    store.Database
	snapshot *current
	ticker   *ticker
	release  *inForce
}

// ready answers GET /readyz: 200 while requests are served in full, else 503. Anybody may
// ask, so that it says what cannot be done, and the log says the rest.
func (p *readiness) ready(*call) (any, error) {
	out := protocol.Ready{Ready: true, Cannot: []protocol.Cannot{}}
	cannot := func(c protocol.Cannot) { out.Cannot = append(out.Cannot, c) }
	if p.snapshot.Load() == nil {
		out.Ready = false
		cannot(protocol.Cannot{What: "serve", Code: "no-release", Text: "no release was accepted yet"})
	}
	if err := p.store.Fault(); err != nil {
		out.Ready = false
		c := protocol.Cannot{What: "write", Code: "database", Text: "the database cannot be written"}
		if fault := (*store.Fault)(nil); errors.As(err, &fault) {
			c.Code, c.Text = fault.Code(), fault.Error()
		}
		cannot(c)
	}
	if p.ticker.last.Load() > 0 && !p.ticker.alive() {
		out.Ready = false
		cannot(protocol.Cannot{What: "decide", Code: "ticks-stopped", Text: "what is due is not decided"})
	}
	if since := p.release.failing.Load(); since > 0 {
		cannot(protocol.Cannot{What: "take-releases", Code: "source-failing",
			Text: "the source gives no release since " + time.Unix(since, 0).UTC().Format(time.RFC3339)})
	}
	if !out.Ready {
		out.Error = "control plane not ready"
		return otherwise{http.StatusServiceUnavailable, out}, nil
	}
	return out, nil
}
