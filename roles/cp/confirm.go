package cp

import (
	"net/http"
	"time"

	"nixfleet/roles/protocol"
	"nixfleet/roles/rollout"
)

func (s *server) confirm(w http.ResponseWriter, r *http.Request, host string) {
	var req protocol.ConfirmRequest
	if !readJSON(w, r, &req) {
		return
	}
	if req.Hostname != host {
		writeRefusal(w, http.StatusForbidden, "not-yours", "the certificate is of another host")
		return
	}
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
	s.log.Info().Str("host", host).Str("rollout", req.Rollout).Str("closure", req.Generation.ClosureHash).Bool("accepted", confirmed).Msg("confirm received")
	if !confirmed {
		w.WriteHeader(http.StatusGone)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}
