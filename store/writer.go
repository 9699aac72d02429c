package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// maxGroup bounds how many operations share one commit.
const maxGroup = 256

// operation is one write and the callers that wait for it.
type operation struct {
	work    func(*sql.Tx) error
	pending *Pending
}

// Pending is a write on its way to the disk.
type Pending struct {
	done chan struct{}
	err  error // read after done is closed
}

// settle gives the outcome to all callers that wait, now or later.
func (p *Pending) settle(err error) {
	p.err = err
	close(p.done)
}

// Settled is a write that has ended already, with err.
func Settled(err error) *Pending {
	p := &Pending{done: make(chan struct{})}
	p.settle(err)
	return p
}

// Wait returns once the write is on disk or has failed. When ctx ends first
// the write goes on without us: its outcome is then unknown.
func (p *Pending) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// submit queues a write and never blocks: callers hold locks of their own.
// Writes are committed in the order of their submits.
func (s *Store) submit(work func(*sql.Tx) error) *Pending {
	p := &Pending{done: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return Settled(ErrClosed)
	}
	s.queue = append(s.queue, operation{work, p})
	s.queued.Signal()
	return p
}

// do queues a write and waits for it. The write itself never sees ctx: one
// that was begun is finished.
func (s *Store) do(ctx context.Context, work func(*sql.Tx) error) error {
	return s.submit(work).Wait(ctx)
}

// writer commits what has queued up while the last commit was on its way, and
// ends when the store is closed and nothing is queued.
func (s *Store) writer() {
	defer close(s.done)
	for {
		s.mu.Lock()
		for len(s.queue) == 0 && !s.closed {
			s.queued.Wait()
		}
		if len(s.queue) == 0 {
			s.mu.Unlock()
			return
		}
		group := s.queue
		s.queue = nil
		s.mu.Unlock()
		for len(group) > 0 {
			n := min(len(group), maxGroup)
			s.commit(group[:n])
			group = group[n:]
		}
	}
}

// commit runs a group in one transaction, each operation in a savepoint of its
// own, and answers when the transaction is on disk. It waits for a lock that
// another program holds for as long as that takes: a group that is given up would
// be decided anew, from less than is known now.
func (s *Store) commit(group []operation) {
	outcomes := make([]error, len(group))
	err := s.transact(group, outcomes)
	for errors.Is(err, ErrLocked) && !s.closing() {
		s.fault.Store(&ErrLocked)
		err = s.transact(group, outcomes)
	}
	s.fault.Store(nil)
	if kind := kindOf(err); kind != nil {
		s.fault.Store(&kind)
	}
	for i, op := range group {
		if err != nil {
			outcomes[i] = err
		}
		op.pending.settle(named(outcomes[i]))
	}
}

func (s *Store) closing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// transact makes one attempt. An error is one of the whole transaction.
func (s *Store) transact(group []operation, outcomes []error) error {
	s.putBack()
	tx, err := s.write.Begin()
	if err != nil {
		return fmt.Errorf("begin: %w", named(err))
	}
	for i, op := range group {
		if outcomes[i], err = inSavepoint(tx, op.work); err != nil {
			return errors.Join(err, tx.Rollback())
		}
	}
	var written int64
	if err := tx.QueryRow(sequences).Scan(&written); err != nil {
		return errors.Join(fmt.Errorf("read sequences: %w", err), tx.Rollback())
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit: %w", named(err))
	}
	if written != s.guard.written {
		s.guard.written = written
		// What is not noted is missing from a warning, and nothing else.
		_ = s.guard.write()
	}
	return nil
}

// inSavepoint separates the operation's own failure (outcome) from one of the
// whole transaction (err), as a full disk is.
func inSavepoint(tx *sql.Tx, work func(*sql.Tx) error) (outcome, err error) {
	if _, err := tx.Exec("SAVEPOINT operation"); err != nil {
		return nil, fmt.Errorf("savepoint: %w", err)
	}
	if outcome = work(tx); outcome != nil {
		if _, err := tx.Exec("ROLLBACK TO operation"); err != nil {
			return nil, fmt.Errorf("%w (roll back: %w)", outcome, err)
		}
	}
	if _, err := tx.Exec("RELEASE operation"); err != nil {
		return nil, fmt.Errorf("release savepoint: %w", err)
	}
	return outcome, nil
}
