package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/go-json-experiment/json"

	"nixfleet/roles/rollout"
)

// SubmitRollout queues what a decision changed. Call it in the order of the
// decisions, under the lock that orders them, and wait outside of it: the rows
// are on disk when Wait returns nil. Reports that led to the decision are stored
// with it, or not at all.
func (s *Store) SubmitRollout(c rollout.Change, because ...Report) *Pending {
	return s.submit(func(tx *sql.Tx) error {
		for _, r := range because {
			if err := r.put(tx); err != nil {
				return fmt.Errorf("store report of %s: %w", r.Hostname, err)
			}
		}
		for _, write := range []func(*sql.Tx, rollout.Change) error{putRollouts, putHosts, putDispatches, putQuarantines,
			putTwins, putFreezes, putEvents} {
			if err := write(tx, c); err != nil {
				return fmt.Errorf("store rollout: %w", err)
			}
		}
		return nil
	})
}

func encode(v any) (string, error) {
	doc, err := json.Marshal(v)
	return string(doc), err
}

func putRollouts(tx *sql.Tx, c rollout.Change) error {
	for _, r := range c.Rollouts {
		ids, err := encode(r.IDs)
		if err != nil {
			return err
		}
		var hold any
		if r.Hold != nil {
			if hold, err = encode(r.Hold); err != nil {
				return err
			}
		}
		if _, err := tx.Exec(`INSERT OR REPLACE INTO rollouts (channel, intent, rollout_id, channel_ref, ids, state,
			wave, wave_since, opened_at, created_at, terminal_at, superseded_at, superseded_by, halt_reason, hold)
			VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)`,
			r.Channel, r.Intent, r.RolloutID, r.ChannelRef, ids, string(r.State), r.Wave, text(r.WaveSince), text(r.OpenedAt),
			text(r.CreatedAt), textOrNull(r.TerminalAt), textOrNull(r.SupersededAt), r.SupersededBy, r.HaltReason,
			hold); err != nil {
			return err
		}
	}
	return nil
}

func putHosts(tx *sql.Tx, c rollout.Change) error {
	if len(c.Hosts) == 0 {
		return nil
	}
	put, err := tx.Prepare(`INSERT OR REPLACE INTO rollout_hosts (hostname, intent, channel, state, wave,
		closure_hash, previous, since, healthy_since, failing_since, reason, attempt,
		failures) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)`)
	if err != nil {
		return err
	}
	defer put.Close()
	for _, h := range c.Hosts {
		failures, err := encode(h.Failures)
		if err != nil {
			return err
		}
		if _, err := put.Exec(h.Host, h.Intent, h.Channel, string(h.State), h.Wave, h.Closure, h.Previous, text(h.Since),
			textOrNull(h.HealthySince), textOrNull(h.FailingSince), h.Reason, h.Attempt, failures); err != nil {
			return err
		}
	}
	return nil
}

func putDispatches(tx *sql.Tx, c rollout.Change) error {
	for _, d := range c.Dispatches {
		var id int64
		err := tx.QueryRow(
			`SELECT id FROM pending_confirms JOIN dispatch_leases USING (id)
				WHERE hostname = ? AND dispatched_at = ? AND intent = ?`,
			d.Host, text(d.DispatchedAt), d.Intent).Scan(&id)
		switch {
		case errors.Is(err, sql.ErrNoRows):
			err = insertDispatch(tx, d)
		case err == nil:
			err = updateDispatch(tx, id, d)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func insertDispatch(tx *sql.Tx, d rollout.Dispatch) error {
	row, err := tx.Exec(`INSERT INTO pending_confirms (hostname, rollout_id, channel, wave, target_closure_hash,
		target_channel_ref, state, dispatched_at, confirm_deadline, confirmed_at) VALUES (?,?,?,?,?,?,?,?,?,?)`,
		d.Host, d.RolloutID, d.Channel, d.Wave, d.Closure, d.ChannelRef, d.State, text(d.DispatchedAt),
		text(d.ConfirmDeadline), textOrNull(d.ConfirmedAt))
	if err != nil {
		return err
	}
	id, err := row.LastInsertId()
	if err != nil {
		return err
	}
	_, err = tx.Exec(
		`INSERT INTO dispatch_leases (id, intent, start_by, slot_until, knows_lease, ended_at) VALUES (?,?,?,?,?,?)`,
		id, d.Intent, text(d.StartBy), text(d.SlotUntil), d.KnowsLease, textOrNull(d.EndedAt))
	return err
}

func updateDispatch(tx *sql.Tx, id int64, d rollout.Dispatch) error {
	if _, err := tx.Exec(
		`UPDATE pending_confirms SET rollout_id = ?, target_channel_ref = ?, state = ?, confirm_deadline = ?,
				confirmed_at = ? WHERE id = ?`,
		d.RolloutID, d.ChannelRef, d.State, text(d.ConfirmDeadline), textOrNull(d.ConfirmedAt), id); err != nil {
		return err
	}
	_, err := tx.Exec(
		`UPDATE dispatch_leases SET start_by = ?, slot_until = ?, knows_lease = ?, ended_at = ? WHERE id = ?`,
		text(d.StartBy), text(d.SlotUntil), d.KnowsLease, textOrNull(d.EndedAt), id)
	return err
}

func putQuarantines(tx *sql.Tx, c rollout.Change) error {
	for _, q := range c.Quarantines {
		if _, err := tx.Exec(
			`INSERT OR REPLACE INTO quarantines (channel, closure_hash, reason, since, cleared) VALUES (?,?,?,?,?)`,
			q.Channel, q.Closure, q.Reason, text(q.Since), q.Cleared); err != nil {
			return err
		}
	}
	return nil
}

func putTwins(tx *sql.Tx, c rollout.Change) error {
	for _, t := range c.Twins {
		if _, err := tx.Exec(
			`INSERT OR REPLACE INTO host_twins (hostname, boot_id, other_boot_id, since, held, cleared) VALUES (?,?,?,?,?,?)`,
			t.Host, t.BootIDs[0], t.BootIDs[1], text(t.Since), t.Held, t.Cleared); err != nil {
			return err
		}
	}
	return nil
}

func putFreezes(tx *sql.Tx, c rollout.Change) error {
	for _, f := range c.Freezes {
		if _, err := tx.Exec(
			`INSERT OR REPLACE INTO channel_freezes (channel, frozen_by, reason, since, until, thawed) VALUES (?,?,?,?,?,?)`,
			f.Channel, f.By, f.Reason, text(f.At), text(f.Until), f.Thawed); err != nil {
			return err
		}
	}
	return nil
}

func putEvents(tx *sql.Tx, c rollout.Change) error {
	for _, e := range c.Events {
		if _, err := tx.Exec(
			`INSERT INTO rollout_events (at, kind, intent, rollout_id, channel, hostname, actor, reason, detail)
				VALUES (?,?,?,?,?,?,?,?,?)`,
			text(e.At.Time), e.Kind, e.Intent, e.RolloutID, e.Channel, e.Host, e.Actor, e.Reason, e.Detail); err != nil {
			return err
		}
	}
	return nil
}

// rolloutsLoaded is how many rollouts of each channel are loaded, the newest
// first: more than the decision procedure remembers of a channel's past.
const rolloutsLoaded = 16

// LoadRollouts reads all that the decision procedure goes on from: rollouts
// that nothing has superseded and the last few others of each channel; the host
// rows of the former, and of others that still have an open dispatch; dispatches
// that are open, still hold a slot, or are the last confirmed one of their host;
// quarantines; hosts of which there are two; channels that are frozen.
func (s *Store) LoadRollouts(ctx context.Context) (rollout.State, error) {
	var st rollout.State
	tx, err := s.read.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return st, fmt.Errorf("load rollouts: %w", err)
	}
	defer tx.Rollback()
	for _, load := range []func(context.Context, *sql.Tx, *rollout.State) error{loadRollouts, loadHosts, loadDispatches,
		loadQuarantines, loadTwins, loadFreezes} {
		if err := load(ctx, tx, &st); err != nil {
			return rollout.State{}, fmt.Errorf("load rollouts: %w", err)
		}
	}
	st.Empty = len(st.Rollouts) == 0 && len(st.Dispatches) == 0
	return st, nil
}

// collect scans each row of a query into a new T.
func collect[T any](ctx context.Context, tx interface {
	QueryContext(context.Context, string, ...any) (*sql.Rows, error)
}, query string, columns func(*T) []any, args ...any) ([]T, error) {
	rows, err := tx.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []T
	for rows.Next() {
		var v T
		if err := rows.Scan(columns(&v)...); err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, rows.Err()
}

// document scans a JSON column; null leaves the value alone.
type document struct{ to any }

// Scan decodes the column.
func (d document) Scan(v any) error {
	if v == nil {
		return nil
	}
	s, ok := v.(string)
	if !ok {
		return fmt.Errorf("JSON column holds %T", v)
	}
	return json.Unmarshal([]byte(s), d.to)
}

func loadRollouts(ctx context.Context, tx *sql.Tx, st *rollout.State) (err error) {
	st.Rollouts, err = collect(ctx, tx, `SELECT channel, intent, rollout_id, channel_ref, ids, state, wave,
		wave_since, opened_at, created_at, terminal_at, superseded_at, superseded_by, halt_reason, hold FROM
			(SELECT *, row_number() OVER (PARTITION BY channel ORDER BY created_at DESC) AS age FROM rollouts)
		WHERE superseded_at IS NULL OR age <= ? ORDER BY channel, created_at`,
		func(r *rollout.Rollout) []any {
			return []any{&r.Channel, &r.Intent, &r.RolloutID, &r.ChannelRef, document{&r.IDs}, &r.State, &r.Wave,
				moment{&r.WaveSince},
				moment{&r.OpenedAt}, moment{&r.CreatedAt}, maybe{&r.TerminalAt}, maybe{&r.SupersededAt}, &r.SupersededBy,
				&r.HaltReason, document{&r.Hold}}
		}, rolloutsLoaded)
	return err
}

func loadHosts(ctx context.Context, tx *sql.Tx, st *rollout.State) (err error) {
	st.Hosts, err = collect(ctx, tx, `SELECT hostname, intent, channel, state, wave, closure_hash, previous, since,
		healthy_since, failing_since, reason, attempt, failures FROM rollout_hosts
		WHERE intent IN (SELECT intent FROM rollouts WHERE superseded_at IS NULL)
			OR intent IN (SELECT intent FROM dispatch_leases JOIN pending_confirms USING (id)
				WHERE state IN ('pending', 'deferred-pending-reboot'))
		ORDER BY hostname, intent`,
		func(h *rollout.HostRecord) []any {
			return []any{&h.Host, &h.Intent, &h.Channel, &h.State, &h.Wave, &h.Closure, &h.Previous, moment{&h.Since},
				maybe{&h.HealthySince}, maybe{&h.FailingSince}, &h.Reason, &h.Attempt, document{&h.Failures}}
		})
	return err
}

func loadDispatches(ctx context.Context, tx *sql.Tx, st *rollout.State) (err error) {
	st.Dispatches, err = collect(ctx, tx, `SELECT id, hostname, rollout_id, channel, wave, target_closure_hash,
		target_channel_ref, state, dispatched_at, confirm_deadline, confirmed_at, intent, start_by, slot_until,
		knows_lease, ended_at
		FROM pending_confirms JOIN dispatch_leases USING (id)
		WHERE state IN ('pending', 'deferred-pending-reboot') OR slot_until > ?
			OR id IN (SELECT max(id) FROM pending_confirms WHERE state = 'confirmed' GROUP BY hostname) ORDER BY id`,
		func(d *rollout.Dispatch) []any {
			return []any{&d.ID, &d.Host, &d.RolloutID, &d.Channel, &d.Wave, &d.Closure, &d.ChannelRef, &d.State,
				moment{&d.DispatchedAt},
				moment{&d.ConfirmDeadline}, maybe{&d.ConfirmedAt}, &d.Intent, moment{&d.StartBy}, moment{&d.SlotUntil},
				&d.KnowsLease, maybe{&d.EndedAt}}
		}, text(time.Now()))
	return err
}

func loadQuarantines(ctx context.Context, tx *sql.Tx, st *rollout.State) (err error) {
	st.Quarantines, err = collect(ctx, tx,
		`SELECT channel, closure_hash, reason, since, cleared FROM quarantines ORDER BY channel, closure_hash`,
		func(q *rollout.Quarantine) []any {
			return []any{&q.Channel, &q.Closure, &q.Reason, moment{&q.Since}, &q.Cleared}
		})
	return err
}

func loadTwins(ctx context.Context, tx *sql.Tx, st *rollout.State) (err error) {
	st.Twins, err = collect(ctx, tx,
		`SELECT hostname, boot_id, other_boot_id, since, held, cleared FROM host_twins WHERE NOT cleared ORDER BY hostname`,
		func(t *rollout.Twins) []any {
			return []any{&t.Host, &t.BootIDs[0], &t.BootIDs[1], moment{&t.Since}, &t.Held, &t.Cleared}
		})
	return err
}

func loadFreezes(ctx context.Context, tx *sql.Tx, st *rollout.State) (err error) {
	st.Freezes, err = collect(ctx, tx,
		`SELECT channel, frozen_by, reason, since, until, thawed FROM channel_freezes WHERE NOT thawed ORDER BY channel`,
		func(f *rollout.Freeze) []any {
			return []any{&f.Channel, &f.By, &f.Reason, moment{&f.At}, moment{&f.Until}, &f.Thawed}
		})
	return err
}
