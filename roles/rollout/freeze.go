package rollout

import (
	"errors"
	"fmt"
	"time"

	"nixfleet/pki"
	"nixfleet/roles/protocol"
)

// Freeze is an operator's word that nothing new starts on a channel until a time, whichever releases come. Keyed by
// Channel. What is in flight ends; hosts that go back do so; a host that an operator retries, and a release that
// declares an emergency, are let through.
type Freeze struct {
	Channel, By, Reason string
	At, Until           time.Time
	Thawed              bool
}

// MaxFreeze is how far ahead a freeze may end.
const MaxFreeze = 366 * 24 * time.Hour

// Errors of Freeze and Thaw. They are wrapped with what was asked for.
var (
	ErrNoChannel = errors.New("no such channel in the current release")
	ErrUntil     = errors.New("a freeze ends in the future and within a year")
	ErrNotFrozen = errors.New("the channel is not frozen")
)

// Freeze freezes a channel of the current release. A channel that is frozen gets the new end and the new reason.
func (w *World) Freeze(channel, by, reason string, until, now time.Time) (Change, error) {
	now, until = at(now), at(until)
	if !w.declares(channel) {
		return Change{}, fmt.Errorf("freeze channel %s: %w", channel, ErrNoChannel)
	}
	if !until.After(now) || until.After(now.Add(MaxFreeze)) {
		return Change{}, fmt.Errorf("freeze channel %s until %s: %w", channel, clockText(until), ErrUntil)
	}
	ch := w.rollouts.channel(channel)
	ch.freeze = &Freeze{Channel: channel, By: by, Reason: reason, At: now, Until: until}
	w.rollouts.saveFreeze(ch)
	w.changes.log(protocol.Event{
		At: pki.At(now), Channel: channel, Kind: protocol.LogFrozen, Actor: by, Reason: CodeFrozen,
		Detail: "until " + clockText(until) + reasonSuffix(reason),
	})
	if ch.cur != nil {
		w.changes.move(ch.cur)
	}
	w.rollouts.flush(now)
	return w.finish(), nil
}

// Thaw ends the freeze of a channel before its time.
func (w *World) Thaw(channel, by, reason string, now time.Time) (Change, error) {
	now = at(now)
	ch := w.rollouts.channels[channel]
	if ch == nil || ch.freeze == nil {
		return Change{}, fmt.Errorf("thaw channel %s: %w", channel, ErrNotFrozen)
	}
	w.rollouts.endFreeze(ch, by, reason, now)
	if ch.cur != nil {
		w.changes.move(ch.cur)
	}
	w.rollouts.flush(now)
	return w.finish(), nil
}

// declares reports whether the current release has a channel.
func (w *World) declares(channel string) bool {
	if w.rel == nil {
		return false
	}
	_, has := w.rel.Fleet.Channels[channel]
	return has
}

// saveFreeze has the freeze of a channel stored, and its rollout know it.
func (rs *rollouts) saveFreeze(ch *channel) {
	if ch.cur != nil {
		ch.cur.times.freeze = ch.freeze
	}
	if !rs.w.changes.virtual && !broken(ruleFreezesStored) {
		rs.w.changes.freezes = append(rs.w.changes.freezes, *ch.freeze)
	}
}

func (rs *rollouts) endFreeze(ch *channel, by, reason string, now time.Time) {
	if ch.freeze == nil {
		return
	}
	over := *ch.freeze
	over.Thawed = true
	ch.freeze = &over
	rs.saveFreeze(ch)
	ch.freeze = nil
	if ch.cur != nil {
		ch.cur.times.freeze = nil
	}
	rs.w.changes.log(protocol.Event{
		At: pki.At(now), Channel: ch.name, Kind: protocol.LogThawed, Actor: by, Detail: reason,
	})
}

// Freezes are the channels that are frozen, sorted by channel.
func (w *World) Freezes(now time.Time) []Freeze {
	var out []Freeze
	for _, ch := range sortedMap(w.rollouts.channels) {
		if f := ch.freeze; f != nil && at(now).Before(f.Until) {
			out = append(out, *f)
		}
	}
	return out
}

func sayFrozen(_ *hold, s subject) (string, string) {
	f := s.run.times.freeze
	return fmt.Sprintf("%s froze channel %s at %s until %s%s", f.By, f.Channel, clockText(f.At), clockText(f.Until),
			reasonSuffix(f.Reason)),
		"nothing to do until then; or: nixfleet thaw " + f.Channel + " --reason TEXT"
}
