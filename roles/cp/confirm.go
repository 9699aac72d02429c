package cp

import (
	"context"
	"net/http"
	"time"

	"nixfleet/roles/protocol"
	"nixfleet/roles/rollout"
)

func (s *server) confirm(w http.ResponseWriter, r *http.Request) {
	var req protocol.ConfirmRequest
	if !readJSON(w, r, &req) {
		return
	}
	if !ownHost(w, r, req.Hostname) {
		return
	}
	host := req.Hostname
	if s.store == nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	confirmed := false
	err := s.change(r.Context(), func(w *rollout.World, now time.Time) (c rollout.Change) {
		confirmed, c = w.Confirm(host, req.Rollout, req.Generation.ClosureHash, now)
		return c
	})
	if err != nil {
		s.answerFailure(w, r, err)
		return
	}
	if !confirmed {
		if confirmed, err = s.confirmedBefore(r.Context(), host, &req); err != nil {
			s.answerFailure(w, r, err)
			return
		}
	}
	s.log.Info().Str("host", host).Str("rollout", req.Rollout).Str("closure", req.Generation.ClosureHash).Bool("accepted", confirmed).Msg("confirm received")
	if !confirmed {
		w.WriteHeader(http.StatusGone)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// confirmedBefore reports whether this is the repetition of a confirm for a
// rollout that others have followed since. It decides nothing any more, but a
// v1 agent that were told 410 would roll a healthy host back.
func (s *server) confirmedBefore(ctx context.Context, host string, req *protocol.ConfirmRequest) (bool, error) {
	if v, ok := s.rolloutView(req.Rollout); ok && v.SupersededAt == nil {
		return false, nil
	}
	return s.store.Confirmed(ctx, host, req.Rollout, req.Generation.ClosureHash)
}
