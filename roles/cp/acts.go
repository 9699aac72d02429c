package cp

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/rs/zerolog"

	"nixfleet/roles/protocol"
	"nixfleet/roles/rollout"
	"nixfleet/store"
)

// acts are what operators change. Each is recorded under the name in the
// operator's certificate before it is made; a revocation is recorded with it, in
// one transaction.
type acts struct {
	cfg     *Config
	log     zerolog.Logger
	store   store.Database
	world   *world
	waiters *waiters
	release *inForce
}

// act is one change: what is done, to what, and why.
type act struct{ action, subject, why string }

func (a act) entry(by string) store.AuditEntry {
	return store.AuditEntry{At: time.Now(), Actor: by, Action: a.action, Subject: a.subject, Reason: a.why}
}

// recorded makes a change after it was recorded.
func (o *acts) recorded(c *call, a act, step func() error) (any, error) {
	ctx, cancel := context.WithTimeout(c.Context(), actTimeout)
	defer cancel()
	if err := o.store.Audit(ctx, a.entry(c.caller.CommonName)); err != nil {
		return nil, o.late(err)
	}
	return o.made(c, a, step())
}

// actTimeout is longer than the database's own patience with a lock, and shorter than
// that of the operator's client.
const actTimeout = 15 * time.Second

// late says why a write has not ended in time: it is queued, and is not taken back.
func (o *acts) late(err error) error {
	if fault := o.store.Fault(); fault != nil && errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%w; this is recorded as soon as that is over", fault)
	}
	return err
}

// made logs a change, or says why it was not made.
func (o *acts) made(c *call, a act, err error) (any, error) {
	switch {
	case err == nil:
		o.log.Info().Str("operator", c.caller.CommonName).Str("action", a.action).Str("subject", a.subject).
			Str("reason", a.why).Func(traced(c.Request)).
			Msg("operator action")
		return nil, nil
	case errors.Is(err, rollout.ErrNoRollout), errors.Is(err, rollout.ErrNoHost):
		return nil, notFound("%s", err)
	case errors.Is(err, rollout.ErrNoChannel):
		return nil, refused(http.StatusNotFound, "no-such-channel", "%s", err)
	case errors.Is(err, rollout.ErrUntil):
		return nil, refused(http.StatusBadRequest, "bad-until", "%s", err)
	case errors.Is(err, rollout.ErrNotFrozen):
		return nil, refused(http.StatusConflict, "not-frozen", "%s", err)
	case errors.Is(err, rollout.ErrOver), errors.Is(err, rollout.ErrRecalled), errors.Is(err, rollout.ErrBusy),
		errors.Is(err, rollout.ErrAction):
		return nil, refused(http.StatusConflict, "not-possible", "%s", err)
	}
	return nil, err
}

// step runs a change of the world that may be refused.
func (o *acts) step(ctx context.Context, do func(*rollout.World, time.Time) (rollout.Change, error)) error {
	var no error
	err := o.world.change(ctx, func(w *rollout.World, now time.Time) (change rollout.Change) {
		change, no = do(w, now)
		return change
	})
	return errors.Join(no, err)
}

// hold pauses, resumes or cancels a rollout.
func (o *acts) hold(action string) handler {
	return func(c *call) (any, error) {
		var req protocol.HoldRequest
		id, err := knownRollout(c, o.store)
		if err == nil {
			err = c.read(&req)
		}
		if err != nil {
			return nil, err
		}
		return o.recorded(c, act{action, id, req.Reason}, func() error {
			return o.step(c.Context(), func(w *rollout.World, now time.Time) (rollout.Change, error) {
				return w.Hold(id, action, c.caller.CommonName, req.Reason, now)
			})
		})
	}
}

func (o *acts) retry(c *call) (any, error) {
	var req protocol.HoldRequest
	if err := c.read(&req); err != nil {
		return nil, err
	}
	host := c.PathValue("name")
	return o.recorded(c, act{"retry", host, req.Reason}, func() error {
		return o.step(c.Context(), func(w *rollout.World, now time.Time) (rollout.Change, error) {
			return w.Retry(host, c.caller.CommonName, req.Reason, now)
		})
	})
}

// freeze lets nothing new start on a channel until a time.
func (o *acts) freeze(c *call) (any, error) {
	var req protocol.FreezeRequest
	if err := c.read(&req); err != nil {
		return nil, err
	}
	channel := c.PathValue("name")
	why := "until " + req.Until.String() + ": " + req.Reason
	return o.recorded(c, act{"freeze", channel, why}, func() error {
		return o.step(c.Context(), func(w *rollout.World, now time.Time) (rollout.Change, error) {
			return w.Freeze(channel, c.caller.CommonName, req.Reason, req.Until.Time, now)
		})
	})
}

// thaw ends the freeze of a channel before its time.
func (o *acts) thaw(c *call) (any, error) {
	var req protocol.HoldRequest
	if err := c.read(&req); err != nil {
		return nil, err
	}
	channel := c.PathValue("name")
	return o.recorded(c, act{"thaw", channel, req.Reason}, func() error {
		return o.step(c.Context(), func(w *rollout.World, now time.Time) (rollout.Change, error) {
			return w.Thaw(channel, c.caller.CommonName, req.Reason, now)
		})
	})
}

func (o *acts) poke(c *call) (any, error) {
	return o.recorded(c, act{"poke", o.release.source.String(), ""}, func() error {
		o.release.lookNow()
		return nil
	})
}
