package store

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"math"
	"time"

	"nixfleet/roles/protocol"
)

// Events reads the event log after a sequence number, oldest first, at most
// limit lines. With a rollout id, under whichever of its ids, it reads only
// what concerns that rollout: nothing while the rollout is not known.
func (s *Store) Events(ctx context.Context, rolloutID string, after int64, limit int) ([]protocol.Event, error) {
	query := `SELECT seq, at, kind, intent, rollout_id, channel, hostname, actor, reason, detail FROM rollout_events
		WHERE seq > ?`
	args := []any{after}
	if rolloutID != "" {
		query += ` AND intent IN (SELECT r.intent FROM rollouts r, json_each(r.ids) j WHERE j.value = ?)`
		args = append(args, rolloutID)
	}
	events, err := collect(ctx, s.read, query+` ORDER BY seq LIMIT ?`, func(e *protocol.Event) []any {
		return []any{&e.Seq, moment{&e.At.Time}, &e.Kind, &e.Intent, &e.RolloutID, &e.Channel, &e.Host, &e.Actor, &e.Reason,
			&e.Detail}
	}, append(args, limit)...)
	if err != nil {
		return nil, fmt.Errorf("read events: %w", err)
	}
	return events, nil
}

// History reads the event log backwards from its end or from before a line.
func (s *Store) History(ctx context.Context, q protocol.HistoryQuery) ([]protocol.Event, error) {
	query := `SELECT seq, at, kind, intent, rollout_id, channel, hostname, actor, reason, detail FROM rollout_events
		WHERE seq < ?`
	args := []any{cmp.Or(q.Before, math.MaxInt64)}
	if q.Rollout != "" {
		query += ` AND intent IN (SELECT r.intent FROM rollouts r, json_each(r.ids) j WHERE j.value = ?)`
		args = append(args, q.Rollout)
	}
	for _, f := range []struct{ column, word string }{
		{"hostname", q.Host}, {"channel", q.Channel}, {"kind", q.Kind}, {"actor", q.Actor},
	} {
		if f.word != "" {
			query += ` AND ` + f.column + ` = ?`
			args = append(args, f.word)
		}
	}
	events, err := collect(ctx, s.read, query+` ORDER BY seq DESC LIMIT ?`, func(e *protocol.Event) []any {
		return []any{&e.Seq, moment{&e.At.Time}, &e.Kind, &e.Intent, &e.RolloutID, &e.Channel, &e.Host, &e.Actor, &e.Reason,
			&e.Detail}
	}, append(args, q.Limit)...)
	if err != nil {
		return nil, fmt.Errorf("read history: %w", err)
	}
	return events, nil
}

// TraceRow is one dispatch of a rollout.
type TraceRow struct {
	Host, Channel, Closure, ChannelRef, State string
	Wave                                      int
	DispatchedAt, ConfirmDeadline             time.Time
	ConfirmedAt, EndedAt                      *time.Time
}

// Ended is when a dispatch that is over ended. The rows of releases that did
// not record it say when it was confirmed, or else when it should have been.
func (r TraceRow) Ended() time.Time {
	for _, at := range []*time.Time{r.EndedAt, r.ConfirmedAt} {
		if at != nil {
			return *at
		}
	}
	return r.ConfirmDeadline
}

// Confirmed reports whether the host has confirmed this closure for this
// rollout, under whichever of its ids.
func (s *Store) Confirmed(ctx context.Context, hostname, rolloutID, closure string) (confirmed bool, err error) {
	err = s.read.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM pending_confirms LEFT JOIN dispatch_leases USING (id)
		WHERE hostname = ?1 AND state = 'confirmed' AND target_closure_hash = ?3
			AND (rollout_id = ?2 OR intent IN (SELECT r.intent FROM rollouts r, json_each(r.ids) j WHERE j.value = ?2)))`,
		hostname, rolloutID, closure).Scan(&confirmed)
	if err != nil {
		return false, fmt.Errorf("look up confirm of %s: %w", hostname, err)
	}
	return confirmed, nil
}

// Trace reads the dispatches of a rollout by wave, then time. Every id of a
// re-signed rollout gives all of them.
func (s *Store) Trace(ctx context.Context, rolloutID string) ([]TraceRow, error) {
	rows, err := collect(ctx, s.read, `SELECT hostname, channel, target_closure_hash, target_channel_ref, state, wave,
		dispatched_at,
		confirm_deadline, confirmed_at, ended_at FROM pending_confirms LEFT JOIN dispatch_leases USING (id)
		WHERE rollout_id = ?1 OR intent IN (SELECT r.intent FROM rollouts r, json_each(r.ids) j WHERE j.value = ?1) ORDER
			BY wave, dispatched_at, id`,
		func(r *TraceRow) []any {
			return []any{&r.Host, &r.Channel, &r.Closure, &r.ChannelRef, &r.State, &r.Wave, moment{&r.DispatchedAt},
				moment{&r.ConfirmDeadline}, maybe{&r.ConfirmedAt}, maybe{&r.EndedAt}}
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
	err := s.do(ctx, e.put)
	if err != nil {
		return fmt.Errorf("record %s: %w", e.Action, err)
	}
	return nil
}

func (e AuditEntry) put(tx *sql.Tx) error {
	_, err := tx.Exec(`INSERT INTO audit (at, actor, action, subject, reason) VALUES (?,?,?,?,?)`,
		text(e.At), e.Actor, e.Action, e.Subject, e.Reason)
	return err
}

// AuditLog reads what operators did, backwards from its end or from before an entry.
func (s *Store) AuditLog(ctx context.Context, before int64, limit int) ([]protocol.AuditEntry, error) {
	entries, err := collect(ctx, s.read, `SELECT seq, at, actor, action, subject, reason FROM audit
		WHERE seq < ? ORDER BY seq DESC LIMIT ?`,
		func(e *protocol.AuditEntry) []any {
			return []any{&e.Seq, moment{&e.At.Time}, &e.Actor, &e.Action, &e.Subject, &e.Reason}
		}, cmp.Or(before, math.MaxInt64), limit)
	if err != nil {
		return nil, fmt.Errorf("read audit log: %w", err)
	}
	return entries, nil
}
