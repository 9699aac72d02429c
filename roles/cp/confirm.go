package cp

import (
	"context"
	"net/http"
	"time"

	"nixfleet/roles/protocol"
	"nixfleet/roles/rollout"
)

func (k *checkins) confirm(c *call) (any, error) {
	var req protocol.ConfirmRequest
	if err := c.read(&req); err != nil {
		return nil, err
	}
	if err := c.is(req.Hostname); err != nil {
		return nil, err
	}
	if err := k.store.Err(); err != nil {
		return nil, err
	}
	host, confirmed := req.Hostname, false
	err := k.world.change(c.Context(), func(w *rollout.World, now time.Time) (change rollout.Change) {
		confirmed, change = w.Confirm(host, req.Rollout, req.Generation.ClosureHash, now)
		return change
	})
	if err == nil && !confirmed {
		confirmed, err = k.confirmedBefore(c.Context(), host, &req)
	}
	if err != nil {
		return nil, err
	}
	k.log.Info().Str("host", host).Str("rollout", req.Rollout).Str("closure", req.Generation.ClosureHash).
		Bool("accepted", confirmed).Msg("confirm received")
	if !confirmed {
		return nil, bareStatus(http.StatusGone)
	}
	return nil, nil
}

// confirmedBefore reports whether this is the repetition of a confirm for a
// rollout that others have followed since. It decides nothing any more, but a
// v1 agent that were told 410 would roll a healthy host back.
func (k *checkins) confirmedBefore(ctx context.Context, host string, req *protocol.ConfirmRequest) (bool, error) {
	if v, ok := k.world.view(req.Rollout); ok && v.SupersededAt == nil {
		return false, nil
	}
	return k.store.Confirmed(ctx, host, req.Rollout, req.Generation.ClosureHash)
}
