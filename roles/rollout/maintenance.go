package rollout

import (
	"time"

	"nixfleet/nixops/fleet"
)

// calendar is when the hosts of a rollout may be given their target, besides what their states say: its channel's
// maintenance windows, and a freeze by an operator.
type calendar struct {
	windows *fleet.Windows // nil: at any time
	// unreadable is why the declared windows cannot be read; they are closed then. A release that was checked when it was
	// made does not have such.
	unreadable string
	emergency  bool    // the release waits for neither of the two
	freeze     *Freeze // nil: the channel is not frozen
	phase      phase
	shut       bool // it was held when it was looked at last
}

// phase is the phase of the windows that was asked for last, with what it holds: windows are asked very often.
type phase struct {
	fleet.Phase
	of             *fleet.Windows
	asked          time.Time // it is not known before
	closed, missed *hold
}

// bind reads what a release says of the windows of a channel.
func (c *calendar) bind(declared fleet.Channel, f *Freeze) {
	*c = calendar{emergency: declared.Emergency != "", freeze: f, shut: c.shut}
	windows, err := declared.Maintenance.Read()
	if err != nil {
		c.unreadable = err.Error()
	}
	c.windows = windows
}

// at is the phase at a time.
func (c *calendar) at(now time.Time) *phase {
	p := &c.phase
	if p.closed == nil || p.of != c.windows || now.Before(p.asked) || !p.Until.IsZero() && !now.Before(p.Until) {
		*p = phase{of: c.windows, asked: now}
		if c.windows != nil {
			p.Phase = c.windows.At(now)
		}
		opens := moment(0)
		if !p.Until.IsZero() {
			opens = momentOf(p.Until)
		}
		p.closed = &hold{code: CodeMaintenance, gate: "maintenance", until: opens}
		p.missed = &hold{code: CodeMissed, gate: "maintenance", until: opens}
	}
	return p
}

// closed reports whether no window is open.
func (c *calendar) closed(now time.Time) bool {
	return (c.windows != nil || c.unreadable != "") && !c.emergency && !c.at(now).Open
}

// frozen reports whether an operator has the channel frozen.
func (c *calendar) frozen(now time.Time) bool {
	return c.freeze != nil && now.Before(c.freeze.Until) && !c.emergency
}

// turns is when the next window opens or closes, or the freeze ends; zero: never.
func (c *calendar) turns(now time.Time) (next time.Time) {
	if c.windows != nil {
		next = c.at(now).Until
	}
	if f := c.freeze; f != nil && (next.IsZero() || f.Until.Before(next)) {
		next = f.Until
	}
	return next
}

// insisted reports whether an operator asked for one more attempt of this very host, which a calendar does not hold.
func (h *host) insisted() bool { return h.retried() || h.lease != nil && h.lease.retry }

// freeze lets nothing new start on a frozen channel. What is in flight ends, and hosts that go back do so.
func (s subject) freeze() *hold {
	c := &s.run.times
	if c.freeze == nil || !c.frozen(s.now) || s.host != nil && s.host.insisted() {
		return nil
	}
	return &hold{code: CodeFrozen, gate: "freeze", until: momentOf(c.freeze.Until)}
}

// maintenance lets a host be given its target while a window of its channel is open. One whose turn was there before
// the last window closed has missed that.
func (s subject) maintenance() *hold {
	c := &s.run.times
	if c.windows == nil && c.unreadable == "" || !c.closed(s.now) || s.host.insisted() {
		return nil
	}
	p := c.at(s.now)
	turn := s.run.WaveSince
	if s.host.wave < s.run.Wave {
		turn = s.run.CreatedAt
	}
	if turn.Before(p.From) {
		return p.missed
	}
	return p.closed
}

// startBy is until when a host may begin that is told its target now: a switch begins within a window.
func (r *run) startBy(l *lease, now time.Time) time.Time {
	by, c := now.Add(r.lease), &r.times
	if c.windows == nil || c.emergency || l.retry || broken(ruleWindowCuts) {
		return by
	}
	if p := c.at(now); p.Open && p.Until.Before(by) {
		return p.Until
	}
	return by
}

// heldBack reports whether the end of a window or a freeze kept a host from what it was told, which then does not
// count as an attempt.
func (s subject) heldBack() bool { return s.freeze() != nil || s.maintenance() != nil }

// keepTime has a rollout looked at when its calendar turns, and wakes the hosts that may go on now.
func (rs *rollouts) keepTime(r *run, now time.Time) {
	c := &r.times
	if c.windows == nil && c.freeze == nil && !c.shut {
		return
	}
	if c.freeze != nil && !now.Before(c.freeze.Until) {
		rs.endFreeze(rs.channel(r.Channel), "", "its time is over", now)
	}
	if due := c.turns(now); !due.IsZero() {
		rs.w.timers.lookAt(&r.timer, due, now)
	}
	shut := c.closed(now) || c.frozen(now)
	if c.shut && !shut && !broken(ruleWindowsWake) {
		rs.wakeOfferable(r, now)
	}
	c.shut = shut
}

func sayMaintenance(h *hold, s subject) (text, next string) {
	text = "hosts of channel " + s.run.Channel + " are changed in its maintenance windows only"
	if h.code == CodeMissed {
		text = "the last maintenance window of channel " + s.run.Channel + " closed at " +
			clockText(s.run.times.at(s.now).From) + " without it"
	}
	switch {
	case s.run.times.unreadable != "":
		return text + ", and these cannot be read: " + s.run.times.unreadable,
			"mend channels." + s.run.Channel + ".maintenance and release"
	case h.until == 0:
		return text + ", and none opens any more", "declare other windows and release; or for this host alone: " + retry(s)
	}
	return text + "; the next one opens at " + clockText(h.until.time()),
		"nothing to do; to do it now, for this host alone: " + retry(s)
}
