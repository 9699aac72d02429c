package agent

import (
	"context"
	"time"

	"nixfleet/nixops"
	"nixfleet/pki"
	"nixfleet/roles/agent/verify"
)

// now is the time, but never before what is known to have passed: boards without
// a clock of their own start in the past, and would find every certificate not yet
// valid. From that floor on time passes as the machine measures it.
func (a *agent) now() time.Time {
	now, earliest := a.cfg.Clock(), a.floor.Add(time.Since(a.started))
	if now.After(earliest) {
		return now
	}
	return earliest
}

// setFloor takes the newest of the release this host has verified, of the start of its
// certificate where a pinned issuing CA vouches for it, and of the source that its system is
// made from. All three are signed by others: its own clock may have been wrong before, and
// what a control plane alone says of the time does not count.
func (a *agent) setFloor(ctx context.Context, marks verify.Marks) error {
	m, err := marks.Load()
	var past []time.Time
	if m != nil {
		past = append(past, m.SignedAt.Add(-pki.ClockSlack))
	}
	past = append(past, a.identity.knownStart())
	if current, err := a.host.CurrentSystem(ctx); err == nil {
		if c, err := a.host.Inspect(ctx, current); err == nil {
			past = append(past, c.SourceDate)
		}
	}
	a.floor = nixops.ClockFloor(past...)
	if behind := a.floor.Sub(a.cfg.Clock()); behind > pki.ClockSlack {
		a.log.Warn().Time("at_least", a.floor).Dur("behind", behind).Msg("this host's clock is behind; set it, for example by NTP")
	}
	return err
}
