package nixops

import (
	"context"
	"errors"
	"time"
)

// errWaited means that the limit of wait has passed.
var errWaited = errors.New("timed out")

// wait calls done until it returns true or an error, at first often and later twice a second. The limit counts from the
// first call; 0 means no limit.
func wait(ctx context.Context, limit time.Duration, done func() (bool, error)) error {
	pause := 10 * time.Millisecond
	started := time.Now()
	for {
		if ok, err := done(); err != nil || ok {
			return err
		}
		if limit > 0 && time.Since(started) >= limit {
			return errWaited
		}
		if err := Sleep(ctx, pause); err != nil {
			return err
		}
		pause = min(pause*3/2, 500*time.Millisecond)
	}
}

// Sleep waits until the time has passed, or returns early with the error of ctx.
func Sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
