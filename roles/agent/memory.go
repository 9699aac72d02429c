package agent

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"nixfleet/pki"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/agent/undo"
	"nixfleet/roles/agent/verify"
	"nixfleet/roles/protocol"
)

const (
	quarantineFile = "quarantine.json"
	holdFile       = "hold.json"
	confirmedFile  = "confirmed.json"
	// unreachableTries is how often a closure is tried again that was undone only
	// because the control plane could not be reached.
	unreachableTries = 3
)

// memory is what this host knows of its generations and of root's acts: the closure that
// failed here, the hold, the generation that was confirmed, and the newest verified target.
type memory struct {
	log      zerolog.Logger
	dir      journal.Directory
	undoer   *undo.Undoer
	clock    *clock
	work     *work
	reporter *reporter

	quarantine atomic.Pointer[quarantine]
	hold       atomic.Pointer[holdState]
	confirmed  atomic.Pointer[confirmed]
	told       atomic.Pointer[verify.Target]
	unbegun    atomic.Pointer[string] // why the newest target could not be begun
}

// quarantine is a closure that failed here and is not tried again until the
// fleet declares another, root says otherwise, or an operator retries it.
type quarantine struct {
	Closure     string         `json:"closure" shape:"R"`
	Intent      string         `json:"intent" shape:"D"`
	ChannelRef  string         `json:"channelRef" shape:"D"`
	Reason      journal.Reason `json:"reason" shape:"R"`
	Failures    uint32         `json:"failures" shape:"R"`
	Unreachable uint32         `json:"unreachable" shape:"D"` // undos without blame
	Refused     uint32         `json:"refused" shape:"D"`     // by this host, before anything was changed
	Retried     bool           `json:"retried" shape:"D"`     // an operator's one retry was taken
	At          pki.Timestamp  `json:"at" shape:"R"`
}

// confirmed is the last generation that the control plane accepted.
type confirmed struct {
	Closure   string        `json:"closure" shape:"R"`
	RolloutID string        `json:"rolloutId" shape:"R"`
	Intent    string        `json:"intent" shape:"D"`
	At        pki.Timestamp `json:"at" shape:"R"`
	// Taken is when the control plane took it, where this host's clock was behind;
	// the second is whole. Only attestations use it: nobody can shorten by it what
	// is limited from here on.
	Taken pki.Timestamp `json:"taken,omitzero" shape:"D"`
	// ChannelRef and SignedAt are of the target; agents before did not keep them.
	ChannelRef string        `json:"channelRef,omitzero" shape:"D"`
	SignedAt   pki.Timestamp `json:"signedAt,omitzero" shape:"D"`
}

// target is what a v1 control plane is told of the last confirmed target. One with heads
// knows it; it is nil for that, and where too little was kept.
func (c *confirmed) target() *protocol.Target {
	if c.Intent != c.RolloutID || c.ChannelRef == "" || c.SignedAt.IsZero() {
		return nil
	}
	return &protocol.Target{ClosureHash: c.Closure, ChannelRef: c.ChannelRef, EvaluatedAt: c.At, RolloutID: c.RolloutID,
		SignedAt: c.SignedAt}
}

// attested is the time to attest: a clock that is behind would have made the soak
// look longer than it was.
func (c *confirmed) attested() pki.Timestamp {
	if c.Taken.After(c.At.Time) {
		return c.Taken
	}
	return c.At
}

// confirmedAt is the last time that is known to have been good: then a release was fresh by
// this host's clock, which cannot have been far ahead. It is zero where none was confirmed.
func (m *memory) confirmedAt() time.Time {
	if last := m.confirmed.Load(); last != nil {
		return last.At.Time
	}
	return time.Time{}
}

// over reports whether the closure is not tried again by itself.
func (q *quarantine) over() bool { return q.Failures > 0 || q.Unreachable > unreachableTries }

// blocked says why a closure is not tried now; empty when it may be.
func (q *quarantine) blocked(closure string, now time.Time) string {
	switch {
	case q == nil || q.Closure != closure:
		return ""
	case q.Failures > 0:
		return "quarantined: " + q.Reason.String()
	case q.Unreachable > unreachableTries:
		return fmt.Sprintf("quarantined: undone %d times though the release is not to blame, the last time: %s",
			q.Unreachable, q.Reason)
	}
	if q.pause(now) > 0 {
		return fmt.Sprintf("waits %s after: %s", backoff(q.Unreachable+q.Refused), q.Reason)
	}
	return ""
}

// pause is how long the closure has still to wait, as long as nothing forbids it. A clock that was set back since then
// would make it wait for as long.
func (q *quarantine) pause(now time.Time) time.Duration {
	since := now.Sub(q.At.Time)
	if since < 0 {
		return 0
	}
	return max(0, backoff(q.Unreachable+q.Refused)-since)
}

func backoff(n uint32) time.Duration {
	return min(time.Minute<<min(n, 8), maxContact)
}

// restore reads what the last agent left. A document that cannot be believed is set aside and
// handed to warn.
func (m *memory) restore(warn func(error)) {
	m.quarantine.Store(journal.Optional[quarantine](m.dir, quarantineFile, warn))
	m.hold.Store(journal.Optional[holdState](m.dir, journal.HoldFile, warn))
	m.confirmed.Store(journal.Optional[confirmed](m.dir, confirmedFile, warn))
}

// refuses says why a target is not taken; empty when it is.
func (m *memory) refuses(w *verify.Target) string {
	if held := m.hold.Load(); held != nil {
		return "held by root: " + held.text()
	}
	q := m.quarantine.Load()
	if q != nil && q.Closure != w.Closure() {
		m.forgive()
		return ""
	}
	why := q.blocked(w.Closure(), m.clock.now())
	if q != nil && w.ByHead() && q.over() && !q.Retried && !m.reporter.outbox.waiting(q.ChannelRef) &&
		m.clock.now().Sub(q.At.Time) > retryAfter {
		// The control plane knows of the failure and offers the closure again: an
		// operator's one retry. A control plane that lies gains one attempt by it. One of
		// v1 offers again whatever has failed, without an operator.
		q.Retried = true
		if err := m.dir.Write(quarantineFile, q); err != nil {
			return err.Error()
		}
		return ""
	}
	return why
}

// pause is how long a target has still to wait here; zero when it is not tried, or may be now.
func (m *memory) pause(w *verify.Target) time.Duration {
	q := m.quarantine.Load()
	if q == nil || q.Closure != w.Closure() || q.over() || m.hold.Load() != nil {
		return 0
	}
	return q.pause(m.clock.now())
}

// retryAfter keeps an offer that crossed our failure report from counting as
// an operator's retry.
const retryAfter = 5 * time.Second

func (m *memory) forgive() {
	m.quarantine.Store(nil)
	if err := m.dir.Remove(quarantineFile); err != nil {
		m.log.Error().Err(err).Msg("quarantine not removed")
	}
}

// blame quarantines a closure that failed here.
func (m *memory) blame(closure, intent, channelRef string, reason journal.Reason) {
	next := m.count(closure, intent, channelRef, reason, func(q *quarantine) { q.Failures++ })
	m.log.Warn().Str("closure", closure).Stringer("reason", reason).Msg("closure quarantined")
	m.reporter.report(protocol.EventClosureQuarantined, channelRef, protocol.ClosureQuarantined{
		ClosureHash: closure, ChannelRef: channelRef, FailureCount: next.Failures, Reason: reason.String(),
	})
}

// excuse counts an undo for which the closure is not to blame. It is tried again, after a
// longer pause each time.
func (m *memory) excuse(closure, intent, channelRef string, reason journal.Reason) {
	m.count(closure, intent, channelRef, reason, func(q *quarantine) {
		if reason.Cause != protocol.CauseLockHeld {
			q.Unreachable++
		}
	})
}

// postpone notes that this host could not begin: it tries again for as long as
// the closure is wanted, less and less often.
func (m *memory) postpone(closure, intent, channelRef string, reason journal.Reason) {
	m.count(closure, intent, channelRef, reason, func(q *quarantine) {
		if reason.Cause != protocol.CauseLockHeld {
			q.Refused++
		}
	})
}

func (m *memory) count(closure, intent, channelRef string, reason journal.Reason, change func(*quarantine)) quarantine {
	q := m.quarantine.Load()
	if q == nil || q.Closure != closure {
		q = &quarantine{Closure: closure, Intent: intent, ChannelRef: channelRef}
	}
	next := *q
	next.ChannelRef, next.Reason, next.At = channelRef, reason, pki.At(m.clock.now().Truncate(time.Millisecond))
	change(&next)
	if err := m.dir.Write(quarantineFile, &next); err != nil {
		m.log.Error().Err(err).Msg("quarantine not written")
	}
	m.quarantine.Store(&next)
	return next
}

// recalled are the intents for which a rollback was honoured.
type recalled struct {
	Intents []string `json:"intents" shape:"R"`
}

const maxRecalled = 64

// forgetRecalled notes that a generation was taken back at the control plane's wish.
// It is not taken again until something else is wanted.
func (m *memory) forgetRecalled(j *journal.Journal) {
	done := journal.Optional[recalled](m.dir, recalledFile, func(error) {})
	if done == nil {
		done = &recalled{}
	}
	done.Intents = append(done.Intents, j.Intent)
	done.Intents = done.Intents[max(0, len(done.Intents)-maxRecalled):]
	if err := errors.Join(m.dir.Write(recalledFile, done), m.dir.Remove(confirmedFile)); err != nil {
		m.log.Error().Err(err).Msg("rollback not recorded")
	}
	m.confirmed.Store(nil)
	m.blame(j.Closure, j.Intent, j.ChannelRef, journal.Reason{Cause: protocol.CauseRecalled})
}

func (m *memory) apply(ctx context.Context, done *act) {
	m.log.Warn().Str("act", done.Kind).Str("text", done.Text).Time("at", done.At.Time).Msg("root command applied")
	switch {
	case done.Hold != nil:
		m.hold.Store(done.Hold)
	case done.Resume:
		m.hold.Store(nil)
		m.quarantine.Store(nil)
		m.confirmed.Store(journal.Optional[confirmed](m.dir, confirmedFile, func(error) {}))
	}
	m.reporter.other(done.Kind, done.Text)
	m.work.tellChange()
}
