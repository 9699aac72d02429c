package agent

import (
	"context"
	"slices"
	"time"

	"github.com/rs/zerolog"

	"nixfleet/nixops"
	"nixfleet/pki"
	"nixfleet/roles/agent/verify"
)

// clock tells the time, but never before what is known to have passed: boards without a
// clock of their own start in the past, and would find every certificate not yet valid. From
// that floor on time passes as the machine measures it.
type clock struct {
	own     func() time.Time // the machine's
	started time.Time
	floor   time.Time // it is at least this late
}

func (c *clock) now() time.Time {
	now, earliest := c.own(), c.floor.Add(time.Since(c.started))
	if now.After(earliest) {
		return now
	}
	return earliest
}

// raise takes the newest of the release this host has verified, of the start of its
// certificate where a pinned issuing CA vouches for it, and of the source that its system is
// made from. All three are signed by others: its own clock may have been wrong before, and
// what a control plane alone says of the time does not count.
func (c *clock) raise(ctx context.Context, marks verify.Marks, id *identity, host nixops.Host,
	log zerolog.Logger) error {
	m, err := marks.Load()
	past := []time.Time{id.knownStart()}
	if m != nil {
		past = append(past, m.SignedAt.Add(-pki.ClockSlack))
	}
	if current, err := host.CurrentSystem(ctx); err == nil {
		if closure, err := host.Inspect(ctx, current); err == nil {
			past = append(past, closure.SourceDate)
		}
	}
	c.floor = nixops.ClockFloor(past...)
	if behind := c.floor.Sub(c.own()); behind > pki.ClockSlack {
		log.Warn().Time("at_least", c.floor).Dur("behind",
			behind).Msg("this host's clock is behind; set it, for example by NTP")
	}
	return err
}

// past is the newest time that is known to have passed: the floor, and what has come since
// this agent began.
func (c *clock) past(since ...time.Time) time.Time {
	return slices.MaxFunc(append(since, c.floor), time.Time.Compare)
}
