package agent

import (
	"context"
	"fmt"
	"time"

	"nixfleet/nixops"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/protocol"
)

// This file has what a generation that was booted must show beside what every generation must.

// bootPoll is the time between two looks at a boot that is not over.
const bootPoll = time.Second

// awaitBoot waits until the boot is over that started the generation: units that the boot starts late cannot be
// watched before. A boot that takes more than half the window is watched as far as it has come, since some units take
// long in a good boot as well.
func (p *prover) awaitBoot(ctx context.Context, j *journal.Journal) error {
	if !j.Booted() {
		return nil
	}
	patience := time.Duration(j.WindowSecs) * time.Second / 2
	for began := time.Now(); ; {
		boot, err := p.host.ThisBoot(ctx)
		if err != nil || boot.Over {
			return err
		}
		if time.Since(began) >= patience {
			p.log.Warn().Str("closure", j.Closure).Msg("the boot is not over; its units are watched all the same")
			return nil
		}
		p.status.waiting("the boot of %s to be over", j.Closure)
		if err := nixops.Sleep(ctx, bootPoll); err != nil {
			return err
		}
	}
}

// awaitBlessing waits until systemd-bless-boot has told the boot loader that the boot of the generation went well. A
// boot that is never blessed is not proven: the loader would leave it again when its tries are used up. It returns why
// the activation is to be undone, nil if it is not.
func (p *prover) awaitBlessing(ctx context.Context, j *journal.Journal) (*journal.Reason, error) {
	if !j.Booted() {
		return nil, nil
	}
	for {
		boot, err := p.host.ThisBoot(ctx)
		if err != nil {
			return nil, err
		}
		because := func(cause protocol.Cause) (*journal.Reason, error) {
			reason := journal.Because(cause, "the boot loader was not told that this boot went well: "+boot.Why)
			return &reason, nil
		}
		switch {
		case boot.Blessing == nixops.BlessingFailed: // such as by a boot partition that cannot be written
			return because(protocol.CausePreflight)
		case boot.Blessing != nixops.BlessingWaits:
			if boot.Why != "" {
				p.log.Warn().Str("closure", j.Closure).Str("why", boot.Why).Msg("nobody blesses this boot")
			}
			return nil, nil
		case p.windowUsed(ctx, j): // something that boot-complete.target requires has failed, or does not end
			return because(protocol.CauseHealthGate)
		}
		p.status.waiting("systemd to bless the boot of %s: %s", j.Closure, boot.Why)
		if err := nixops.Sleep(ctx, bootPoll); err != nil {
			return nil, err
		}
	}
}

// bootPatience is how long after the start of a boot a confirm waits for its end.
const bootPatience = 10 * time.Minute

// awaitBoot has a confirm wait until the boot is over in which it is sent: power may have been lost between commit and
// confirm, and what the boot has yet to start would be confirmed unseen.
func (c *committer) awaitBoot(ctx context.Context, j *journal.Journal) error {
	for {
		since, err := c.host.SinceBoot(ctx)
		if err != nil || since > bootPatience {
			return err
		}
		boot, err := c.host.ThisBoot(ctx)
		if err != nil || boot.Over && boot.Blessing != nixops.BlessingWaits {
			return err
		}
		c.status.waiting("the boot of %s to be over before it is confirmed", j.Closure)
		if err := nixops.Sleep(ctx, bootPoll); err != nil {
			return err
		}
	}
}

// fellBack says how a boot led to a generation other than the confirmed one although nobody asked for that; it is
// empty where a person did, or where that is not known. usedUp says that the boot loader has no tries left for the
// confirmed generation.
func (m *memory) fellBack(ctx context.Context, running string) (how string, usedUp bool) {
	last := m.confirmed.Load()
	var committed journal.Journal
	if last == nil || m.dir.Read(committedFile, &committed) != nil || committed.Closure != last.Closure {
		return "", false
	}
	host := m.undoer.Host
	// A person who wants another generation sets the profile, or switches without a boot.
	profile, err := host.Profile(ctx)
	if err != nil || profile != last.Closure {
		return "", false
	}
	boot, err := host.BootID(ctx)
	if err != nil || boot == committed.BootID {
		return "", false
	}
	link, err := host.BootedSystem(ctx)
	if err != nil || link != running {
		return "", false
	}
	started, err := m.undoer.Booted(ctx)
	before := committed.Before
	if err != nil || started != running || running != before.Current && running != before.Boots() {
		return "", false
	}
	how = fmt.Sprintf("fallback by the boot loader: %s was booted instead of %s, which was confirmed", running,
		last.Closure)
	next, err := host.NextBoot(ctx)
	for _, closure := range next.UsedUp {
		usedUp = usedUp || err == nil && closure == last.Closure
	}
	if usedUp {
		how += "; its tries are used up"
	}
	return how, usedUp
}

// fallBack takes a generation for confirmed no longer that the boot loader has left. Without tries it is not switched
// to again by itself; otherwise the fleet leads the host back to it.
func (m *memory) fallBack(how string, usedUp bool) {
	last := m.confirmed.Load()
	m.log.Error().Str("closure", last.Closure).Str("how", how).Msg("the boot loader has left the confirmed generation")
	if err := m.dir.Remove(confirmedFile); err != nil {
		m.log.Error().Err(err).Msg("fallback not recorded")
		return
	}
	m.confirmed.Store(nil)
	m.reporter.other(protocol.KindFallback, how)
	reason := journal.Because(protocol.CauseBoot, how)
	if usedUp {
		m.blame(last.Closure, last.Intent, last.ChannelRef, reason)
		return
	}
	m.excuse(last.Closure, last.Intent, last.ChannelRef, reason)
}
