package store

import (
	"context"
	"database/sql"
	"fmt"
)

// maxGroup bounds how many operations share one commit.
const maxGroup = 256

// operation is one write and where its outcome goes.
type operation struct {
	work func(*sql.Tx) error
	done chan error
}

// Pending is a write on its way to the disk.
type Pending struct{ done chan error }

// Wait returns once the write is on disk or has failed. When ctx ends first
// the write goes on without us: its outcome is then unknown.
func (p *Pending) Wait(ctx context.Context) error {
	select {
	case err := <-p.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// submit queues a write. Writes are committed in the order of their submits.
func (s *Store) submit(work func(*sql.Tx) error) *Pending {
	p := &Pending{make(chan error, 1)}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		p.done <- ErrClosed
		return p
	}
	s.queue <- operation{work, p.done}
	return p
}

// do queues a write and waits for it. The write itself never sees ctx: one
// that was begun is finished.
func (s *Store) do(ctx context.Context, work func(*sql.Tx) error) error {
	return s.submit(work).Wait(ctx)
}

// writer commits what has queued up while the last commit was on its way.
func (s *Store) writer() {
	defer close(s.done)
	for first := range s.queue {
		group := []operation{first}
	fill:
		for len(group) < maxGroup {
			select {
			case op, ok := <-s.queue:
				if !ok {
					break fill
				}
				group = append(group, op)
			default:
				break fill
			}
		}
		s.commit(group)
	}
}

// commit runs a group in one transaction, each operation in a savepoint of its
// own, and answers when the transaction is on disk.
func (s *Store) commit(group []operation) {
	outcomes := make([]error, len(group))
	err := func() error {
		tx, err := s.write.Begin()
		if err != nil {
			return fmt.Errorf("begin: %w", err)
		}
		for i, op := range group {
			if outcomes[i], err = inSavepoint(tx, op.work); err != nil {
				tx.Rollback()
				return err
			}
		}
		if err := tx.Commit(); err != nil {
			return fmt.Errorf("commit: %w", err)
		}
		return nil
	}()
	for i, op := range group {
		if err != nil {
			outcomes[i] = err
		}
		op.done <- outcomes[i]
	}
}

// inSavepoint separates the operation's own failure (outcome) from one of the
// whole transaction (err).
func inSavepoint(tx *sql.Tx, work func(*sql.Tx) error) (outcome, err error) {
	if _, err := tx.Exec("SAVEPOINT operation"); err != nil {
		return nil, fmt.Errorf("savepoint: %w", err)
	}
	if outcome = work(tx); outcome != nil {
		if _, err := tx.Exec("ROLLBACK TO operation"); err != nil {
			return nil, fmt.Errorf("roll back: %w", err)
		}
	}
	if _, err := tx.Exec("RELEASE operation"); err != nil {
		return nil, fmt.Errorf("release savepoint: %w", err)
	}
	return outcome, nil
}
