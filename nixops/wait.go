package nixops

import (
	"context"
	"errors"
	"time"
)

// errWaited means that the time given to wait was over.
var errWaited = errors.New("timed out")

// wait asks done until it says yes, more and more slowly up to twice a second. A
// limit of 0 is none. The time is counted from the first question.
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
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
		pause = min(pause*3/2, 500*time.Millisecond)
	}
}
