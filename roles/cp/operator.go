package cp

import (
	"errors"
	"net/http"
	"time"

	"nixfleet/pki"
	"nixfleet/roles/protocol"
	"nixfleet/roles/rollout"
	"nixfleet/store"
)

// act answers an operator's change of state: it is recorded under the name in
// the certificate before it is made.
func (s *server) act(w http.ResponseWriter, r *http.Request, action, subject, why string, step func(by string) error) {
	by := caller(r).CommonName
	if s.store != nil {
		if err := s.store.Audit(r.Context(), store.AuditEntry{At: time.Now(), Actor: by, Action: action, Subject: subject, Reason: why}); err != nil {
			s.answerFailure(w, r, err)
			return
		}
	}
	err := step(by)
	switch {
	case err == nil:
		s.log.Info().Str("operator", by).Str("action", action).Str("subject", subject).Str("reason", why).Msg("operator action")
		w.WriteHeader(http.StatusNoContent)
	case errors.Is(err, rollout.ErrNoRollout), errors.Is(err, rollout.ErrNoHost):
		writeRefusal(w, r, http.StatusNotFound, "not-found", err.Error())
	case errors.Is(err, rollout.ErrOver), errors.Is(err, rollout.ErrRecalled), errors.Is(err, rollout.ErrBusy), errors.Is(err, rollout.ErrAction):
		writeRefusal(w, r, http.StatusConflict, "not-possible", err.Error())
	default:
		s.answerFailure(w, r, err)
	}
}

// step runs a change of the world that may be refused.
func (s *server) step(r *http.Request, do func(*rollout.World, time.Time) (rollout.Change, error)) error {
	var refused error
	err := s.change(r.Context(), func(w *rollout.World, now time.Time) (c rollout.Change) {
		c, refused = do(w, now)
		return c
	})
	return errors.Join(refused, err)
}

func (s *server) holdRollout(action string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var req protocol.HoldRequest
		id, ok := s.rolloutID(w, r)
		if !ok || !readJSON(w, r, &req) {
			return
		}
		s.act(w, r, action, id, req.Reason, func(by string) error {
			return s.step(r, func(w *rollout.World, now time.Time) (rollout.Change, error) {
				return w.Hold(id, action, by, req.Reason, now)
			})
		})
	}
}

func (s *server) retry(w http.ResponseWriter, r *http.Request) {
	var req protocol.HoldRequest
	if !readJSON(w, r, &req) {
		return
	}
	host := r.PathValue("name")
	s.act(w, r, "retry", host, req.Reason, func(by string) error {
		return s.step(r, func(w *rollout.World, now time.Time) (rollout.Change, error) {
			return w.Retry(host, by, req.Reason, now)
		})
	})
}

func (s *server) revoke(w http.ResponseWriter, r *http.Request) {
	var req protocol.RevokeRequest
	if !readJSON(w, r, &req) {
		return
	}
	if s.store == nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	if req.Hostname == "" {
		http.Error(w, "hostname is empty", http.StatusUnprocessableEntity)
		return
	}
	notBefore := time.Now()
	if req.NotBefore != nil {
		notBefore = req.NotBefore.Time
	}
	s.act(w, r, "revoke", req.Hostname, req.Reason, func(by string) error {
		err := s.store.Revoke(r.Context(), store.Revocation{Hostname: req.Hostname, NotBefore: notBefore, Reason: req.Reason, RevokedBy: by})
		if err == nil {
			s.waiters.wakeIf(func(host string) bool {
				return host == req.Hostname || pki.AgentName(host, s.cfg.AgentSuffix) == req.Hostname
			})
		}
		return err
	})
}

// lookNow makes the poller look at its source.
func (s *server) lookNow() {
	select {
	case s.poked <- struct{}{}:
	default:
	}
}

func (s *server) poke(w http.ResponseWriter, r *http.Request) {
	s.act(w, r, "poke", s.source.String(), "", func(string) error {
		s.lookNow()
		return nil
	})
}
