package store

import (
	"context"
	"fmt"
	"time"

	"nixfleet/pki"
)

// HostDispatch is one dispatch of a host, with the rollout that it belongs to.
type HostDispatch struct {
	RolloutID string
	TraceRow
}

// DispatchesOf reads the newest dispatches of a host, newest first.
func (s *Store) DispatchesOf(ctx context.Context, host string, limit int) ([]HostDispatch, error) {
	rows, err := collect(ctx, s.read, `SELECT rollout_id, hostname, channel, target_closure_hash, target_channel_ref, state,
		wave, dispatched_at, confirm_deadline, confirmed_at, ended_at
		FROM pending_confirms LEFT JOIN dispatch_leases USING (id) WHERE hostname = ? ORDER BY id DESC LIMIT ?`,
		func(r *HostDispatch) []any {
			return []any{&r.RolloutID, &r.Host, &r.Channel, &r.Closure, &r.ChannelRef, &r.State, &r.Wave,
				moment{&r.DispatchedAt}, moment{&r.ConfirmDeadline}, maybe{&r.ConfirmedAt}, maybe{&r.EndedAt}}
		}, host, limit)
	if err != nil {
		return nil, fmt.Errorf("read dispatches of %s: %w", host, err)
	}
	return rows, nil
}

// Confirmation is a dispatch that a host confirmed: since when it runs what, and of which release it came.
type Confirmation struct {
	Host, Closure, ChannelRef string
	At                        time.Time
}

// Confirmations reads what hosts have confirmed, oldest first.
func (s *Store) Confirmations(ctx context.Context, hosts []string) ([]Confirmation, error) {
	names, err := pki.Marshal(hosts)
	if err != nil {
		return nil, err
	}
	rows, err := collect(ctx, s.read, `SELECT p.hostname, p.target_closure_hash, p.target_channel_ref,
		p.confirmed_at FROM json_each(?) j JOIN pending_confirms p ON p.hostname = j.value
		WHERE p.state = 'confirmed' AND p.confirmed_at IS NOT NULL ORDER BY p.id`,
		func(r *Confirmation) []any { return []any{&r.Host, &r.Closure, &r.ChannelRef, moment{&r.At}} }, string(names))
	if err != nil {
		return nil, fmt.Errorf("read confirmations: %w", err)
	}
	return rows, nil
}
