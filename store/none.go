package store

import (
	"context"
	"errors"
	"time"

	"nixfleet/roles/protocol"
	"nixfleet/roles/rollout"
)

// ErrNone means that there is no database: what was asked for would have to be
// remembered. Test with errors.Is.
var ErrNone = errors.New("no database")

// Database is what the control plane asks of a store: a *Store, or None.
type Database interface {
	// Err is ErrNone when there is no database, and nil otherwise.
	Err() error
	SubmitRollout(c rollout.Change, because ...Report) *Pending
	LoadRollouts(ctx context.Context) (rollout.State, error)
	Confirmed(ctx context.Context, hostname, rolloutID, closure string) (bool, error)
	Trace(ctx context.Context, rolloutID string) ([]TraceRow, error)
	DispatchesOf(ctx context.Context, host string, limit int) ([]HostDispatch, error)
	Confirmations(ctx context.Context, hosts []string) ([]Confirmation, error)
	ReportsOf(ctx context.Context, host string) ([]Report, error)
	Events(ctx context.Context, rolloutID string, after int64, limit int) ([]protocol.Event, error)
	History(ctx context.Context, q protocol.HistoryQuery) ([]protocol.Event, error)
	AddReport(ctx context.Context, r Report) error
	Reports(ctx context.Context, host string, limit int) ([]Report, error)
	VerifiedReports(ctx context.Context) (map[string]uint32, error)
	Audit(ctx context.Context, e AuditEntry) error
	AuditLog(ctx context.Context, before int64, limit int) ([]protocol.AuditEntry, error)
	Revoke(ctx context.Context, r Revocation, because AuditEntry) error
	RevokedSince(ctx context.Context, names ...string) (notBefore time.Time, ok bool, err error)
	Revocations(ctx context.Context) (map[string]time.Time, error)
	RevocationRows(ctx context.Context) ([]RevocationRow, error)
	Unrevoke(ctx context.Context, name string, because AuditEntry) (n int64, err error)
	TokenUsed(ctx context.Context, nonce string) (bool, error)
	UseToken(ctx context.Context, nonce, hostname string, keepUntil time.Time) error
	Prune(ctx context.Context, now time.Time) error
	Displaced() bool
	// Fault is what keeps the database from being written now.
	Fault() error
	Close() error
}

// Err is nil: there is a database.
func (s *Store) Err() error { return nil }

// None is the database of a control plane that has none. It holds nothing, so
// that what it is asked for is empty; what it is told is forgotten where that
// loses a view only (reports, audit), and is ErrNone where a decision depends
// on it later.
type None struct{}

// Err is ErrNone.
func (None) Err() error { return ErrNone }

// SubmitRollout is done at once: nothing is dispatched without a database, so
// that nothing which matters is lost.
func (None) SubmitRollout(rollout.Change, ...Report) *Pending {
	return Settled(nil)
}

// LoadRollouts is an empty state.
func (None) LoadRollouts(context.Context) (rollout.State, error) {
	return rollout.State{Empty: true}, nil
}

// Confirmed is ErrNone.
func (None) Confirmed(context.Context, string, string, string) (bool, error) { return false, ErrNone }

// Trace is ErrNone.
func (None) Trace(context.Context, string) ([]TraceRow, error) { return nil, ErrNone }

// DispatchesOf knows of none.
func (None) DispatchesOf(context.Context, string, int) ([]HostDispatch, error) { return nil, nil }

// Confirmations knows of none.
func (None) Confirmations(context.Context, []string) ([]Confirmation, error) { return nil, nil }

// ReportsOf knows of none.
func (None) ReportsOf(context.Context, string) ([]Report, error) { return nil, nil }

// Events is ErrNone.
func (None) Events(context.Context, string, int64, int) ([]protocol.Event, error) {
	return nil, ErrNone
}

// History is ErrNone.
func (None) History(context.Context, protocol.HistoryQuery) ([]protocol.Event, error) {
	return nil, ErrNone
}

// AuditLog is ErrNone.
func (None) AuditLog(context.Context, int64, int) ([]protocol.AuditEntry, error) { return nil, ErrNone }

// AddReport forgets the report.
func (None) AddReport(context.Context, Report) error { return nil }

// Reports is ErrNone.
func (None) Reports(context.Context, string, int) ([]Report, error) { return nil, ErrNone }

// VerifiedReports counts none.
func (None) VerifiedReports(context.Context) (map[string]uint32, error) { return nil, nil }

// Audit forgets the entry; the log of the control plane has it.
func (None) Audit(context.Context, AuditEntry) error { return nil }

// Revoke is ErrNone.
func (None) Revoke(context.Context, Revocation, AuditEntry) error { return ErrNone }

// RevokedSince knows no local row.
func (None) RevokedSince(context.Context, ...string) (time.Time, bool, error) {
	return time.Time{}, false, nil
}

// Revocations has no local row.
func (None) Revocations(context.Context) (map[string]time.Time, error) { return nil, nil }

// RevocationRows is ErrNone.
func (None) RevocationRows(context.Context) ([]RevocationRow, error) { return nil, ErrNone }

// Unrevoke is ErrNone.
func (None) Unrevoke(context.Context, string, AuditEntry) (int64, error) { return 0, ErrNone }

// TokenUsed is ErrNone: a used token could not be remembered.
func (None) TokenUsed(context.Context, string) (bool, error) { return false, ErrNone }

// UseToken is ErrNone.
func (None) UseToken(context.Context, string, string, time.Time) error { return ErrNone }

// Prune has nothing to do.
func (None) Prune(context.Context, time.Time) error { return nil }

// Displaced is false.
func (None) Displaced() bool { return false }

// Fault is nil: nothing is written.
func (None) Fault() error { return nil }

// Close has nothing to do.
func (None) Close() error { return nil }
