package store

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"nixfleet/roles/rollout"
)

// Events reads the event log after a sequence number, oldest first, at most
// limit lines.
func (s *Store) Events(ctx context.Context, after int64, limit int) ([]rollout.Event, error) {
	events, err := collect(ctx, s.read, `SELECT seq, at, kind, intent, rollout_id, channel, hostname, actor, reason, detail
		FROM rollout_events WHERE seq > ? ORDER BY seq LIMIT ?`, func(e *rollout.Event) []any {
		return []any{&e.Seq, moment{&e.At}, &e.Kind, &e.Intent, &e.RolloutID, &e.Channel, &e.Host, &e.Actor, &e.Reason, &e.Detail}
	}, after, limit)
	if err != nil {
		return nil, fmt.Errorf("read events: %w", err)
	}
	return events, nil
}

// TraceRow is one dispatch of a rollout.
type TraceRow struct {
	Host, Channel, Closure, ChannelRef, State string
	Wave                                      int
	DispatchedAt, ConfirmDeadline             time.Time
	ConfirmedAt                               *time.Time
}

// Trace reads the dispatches of a rollout by wave, then time. Every id of a
// re-signed rollout gives all of them.
func (s *Store) Trace(ctx context.Context, rolloutID string) ([]TraceRow, error) {
	rows, err := collect(ctx, s.read, `SELECT hostname, channel, target_closure_hash, target_channel_ref, state, wave, dispatched_at,
		confirm_deadline, confirmed_at FROM pending_confirms LEFT JOIN dispatch_leases USING (id) WHERE rollout_id = ?1 OR intent IN
		(SELECT r.intent FROM rollouts r, json_each(r.ids) j WHERE j.value = ?1) ORDER BY wave, dispatched_at, id`,
		func(r *TraceRow) []any {
			return []any{&r.Host, &r.Channel, &r.Closure, &r.ChannelRef, &r.State, &r.Wave, moment{&r.DispatchedAt}, moment{&r.ConfirmDeadline}, maybe{&r.ConfirmedAt}}
		}, rolloutID)
	if err != nil {
		return nil, fmt.Errorf("trace rollout %s: %w", rolloutID, err)
	}
	return rows, nil
}

// AuditEntry is one act of an operator.
type AuditEntry struct {
	At                             time.Time
	Actor, Action, Subject, Reason string
}

// Audit records an act under the name in the operator's certificate.
func (s *Store) Audit(ctx context.Context, e AuditEntry) error {
	err := s.do(ctx, func(tx *sql.Tx) error {
		_, err := tx.Exec(`INSERT INTO audit (at, actor, action, subject, reason) VALUES (?,?,?,?,?)`, text(e.At), e.Actor, e.Action, e.Subject, e.Reason)
		return err
	})
	if err != nil {
		return fmt.Errorf("record %s: %w", e.Action, err)
	}
	return nil
}
