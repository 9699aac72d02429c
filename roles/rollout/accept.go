package rollout

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/roles/protocol"
)

const (
	// maxIDs bounds the ids kept of one intent: three weeks of hourly re-signing.
	maxIDs = 512
	// maxPast bounds the superseded rollouts of a channel that are remembered here; the store keeps the rest.
	maxPast = 8
)

func sortedChannels(r *fleet.Release) []string {
	return slices.Sorted(maps.Keys(r.Channels))
}

// Accept takes a verified release as the newest. A channel whose intent did not change goes on under its new
// rollout id with all its clocks; another intent supersedes the channel's rollout at once, because agents refuse
// older releases from then on, and waits in Planning until the channels before it let it start. Leases of
// superseded rollouts keep their slots until they end.
func (w *World) Accept(rel *fleet.Release, now time.Time) Change {
	w.accept(rel, at(now))
	return w.finish()
}

func (w *World) accept(rel *fleet.Release, now time.Time) {
	w.rel = rel
	w.bindHosts(rel)
	names := map[string]struct{}{}
	for name := range w.channels {
		names[name] = struct{}{}
	}
	for name := range rel.Fleet.Channels {
		names[name] = struct{}{}
	}
	ordered := slices.Sorted(maps.Keys(names))
	for _, name := range ordered {
		w.bindChannel(name, now)
	}
	if !w.unheard.IsZero() {
		for _, ch := range w.channels {
			if ch.cur != nil {
				w.unheard = later(w.unheard, w.born.Add(ch.cur.lease+ch.cur.confirmWindow))
			}
		}
		w.schedule(&w.clock, w.unheard)
	}
	w.bindEdges(rel)
	w.bindBudgets(rel, now)
	w.dropHosts()
	w.stored = map[string]map[string]*record{}
	w.clearUndeclared(now)
	for _, name := range ordered {
		if r := w.channels[name].cur; r != nil && r.rel != nil {
			for i := range r.waves {
				for _, h := range r.waves[i].hosts {
					w.settle(h, now)
				}
			}
			w.move(r)
		}
	}
	w.flush(now)
	for _, name := range ordered {
		if r := w.channels[name].cur; r != nil {
			w.wakeOfferable(r, now)
		}
	}
}

// bindHosts notes who is declared, and forgets what the last release said.
func (w *World) bindHosts(rel *fleet.Release) {
	for _, h := range w.hosts {
		h.declared, h.channel, h.pinned, h.reboots, h.after, h.before = false, nil, "", "", nil, nil
	}
	// In the order in which they are asked and settled, so that they lie like that in memory.
	for _, name := range sortedChannels(rel) {
		for _, e := range rel.Channels[name].Manifest.HostSet {
			w.host(e.Hostname)
		}
	}
	for name, declared := range rel.Fleet.Hosts {
		h := w.host(name)
		h.declared = true
		h.channel = w.channel(declared.Channel)
		switch mode, window := declared.Reboots(); mode {
		case "window":
			h.reboots = "in its window, " + window
		case "immediate":
			h.reboots = "at once"
		}
		if p := declared.Pin; p != nil {
			h.pinned = "commit " + p.Commit
			if p.ExpiresAt != nil {
				h.pinned += " until " + clockText(p.ExpiresAt.Time)
			}
			if p.Reason != "" {
				h.pinned += " (" + p.Reason + ")"
			}
		}
	}
}

// dropHosts forgets hosts that no release names and that hold nothing.
func (w *World) dropHosts() {
	for name, h := range w.hosts {
		if !h.declared && h.lease == nil && h.slotUntil.IsZero() {
			w.unschedule(&h.timer)
			delete(w.hosts, name)
		}
	}
}

// bindChannel renews, supersedes or ends the rollout of one channel and binds its hosts.
func (w *World) bindChannel(name string, now time.Time) {
	ch := w.channel(name)
	cr := w.rel.Channels[name]
	old := ch.cur
	switch {
	case cr == nil:
		if old != nil {
			w.supersede(ch, "", now)
			ch.cur = nil
		}
		return
	case old != nil && old.Intent == cr.Intent:
		if old.RolloutID != cr.RolloutID {
			old.RolloutID, old.ChannelRef = cr.RolloutID, cr.Manifest.ChannelRef
			if !slices.Contains(old.IDs, cr.RolloutID) {
				old.IDs = append(old.IDs, cr.RolloutID)
			}
			if n := len(old.IDs) - maxIDs; n > 0 {
				old.IDs = slices.Delete(old.IDs, 0, n)
			}
			w.logRun(old, protocol.LogRenewed, "", "", "signed again at "+clockText(w.rel.SignedAt), now)
		}
	default:
		if old != nil {
			w.supersede(ch, cr.RolloutID, now)
		}
		opened := cr.OpenedAt
		if opened.IsZero() {
			opened = w.rel.SignedAt
		}
		ch.past = slices.DeleteFunc(ch.past, func(p *run) bool { return p.Intent == cr.Intent })
		ch.cur = newRun(Rollout{
			Intent: cr.Intent, RolloutID: cr.RolloutID, Channel: name, ChannelRef: cr.Manifest.ChannelRef,
			IDs: []string{cr.RolloutID}, State: Planning, OpenedAt: at(opened.Add(time.Millisecond - 1)), CreatedAt: now,
		})
		delete(w.stored, cr.Intent)
		w.logRun(ch.cur, protocol.LogOpened, "", "", fmt.Sprintf("%s, %s", cr.Manifest.DisplayName, countText(len(cr.Manifest.HostSet), "host")), now)
	}
	w.bindRun(ch.cur, cr)
}

// supersede ends the newest rollout of a channel in favour of another, by its id.
func (w *World) supersede(ch *channel, by string, now time.Time) {
	r := ch.cur
	for i := range r.waves {
		for _, h := range r.waves[i].hosts {
			if h.run != r {
				continue
			}
			if h.lease != nil && h.lease.Intent == r.Intent {
				h.prior = h.rec
			}
			h.run, h.rec, h.waitsFor = nil, nil, nil
		}
	}
	r.waves, r.rel = nil, nil
	w.unschedule(&r.timer)
	r.State, r.Hold, r.SupersededAt, r.SupersededBy = RolloutSuperseded, nil, &now, by
	if r.TerminalAt == nil {
		r.TerminalAt = &now
	}
	w.logRun(r, protocol.LogSuperseded, "", "", "", now)
	ch.past = slices.Insert(ch.past, 0, r)
	if len(ch.past) > maxPast {
		ch.past = ch.past[:maxPast]
	}
}

// bindRun reads what a release says about a rollout and counts its hosts.
func (w *World) bindRun(r *run, cr *fleet.ChannelRelease) {
	declared := w.rel.Fleet.Channels[r.Channel]
	policy := w.rel.Fleet.RolloutPolicies[declared.RolloutPolicy]
	r.rel, r.signedAt = cr, w.rel.SignedAt
	r.freshness = fleet.Minutes(declared.FreshnessWindow)
	r.complianceMode = declared.Compliance.Mode
	r.revert = policy.OnHealthFailure == fleet.OnFailureRollback
	r.confirmWindow, r.lease = w.limits.ConfirmWindow, w.limits.Lease
	if hd := cr.Head; hd != nil {
		if hd.ConfirmWindowSecs > 0 {
			r.confirmWindow = time.Duration(hd.ConfirmWindowSecs) * time.Second
		}
		if hd.LeaseSecs > 0 {
			r.lease = time.Duration(hd.LeaseSecs) * time.Second
		}
	}
	// A channel without waves is one wave without soak time; it still waits for its hosts [C5].
	declaredWaves := w.rel.Fleet.Waves[r.Channel]
	r.waves = make([]wave, max(1, len(declaredWaves)))
	for i, dw := range declaredWaves {
		r.waves[i].soak = dw.Soak()
	}
	r.Wave = min(r.Wave, len(r.waves)-1)
	r.touched = [protocol.HostStateCount]int{}
	stored := w.stored[r.Intent]
	for _, e := range cr.Manifest.HostSet {
		h := w.host(e.Hostname)
		if h.run != nil && h.run != r {
			h.waitsFor = nil
		}
		if h.rec != nil && h.rec.Intent != r.Intent {
			if h.lease != nil && h.lease.Intent == h.rec.Intent {
				h.prior = h.rec
			}
			h.rec = nil
		}
		if h.rec == nil {
			h.rec = stored[h.name]
		}
		if h.closure != e.TargetClosure || h.run != r {
			h.healthAt = time.Time{}
		}
		if h.reported && h.said.Closure == e.TargetClosure && h.healthAt.IsZero() {
			h.healthAt = h.seen
		}
		if h.run != r {
			h.attested = time.Time{} // it was for another intent
		}
		h.run, h.closure = r, e.TargetClosure
		h.wave = min(int(e.WaveIndex), len(r.waves)-1)
		r.waves[h.wave].hosts = append(r.waves[h.wave].hosts, h)
		r.count(h, 1)
	}
	for i := range r.waves {
		slices.SortFunc(r.waves[i].hosts, func(a, b *host) int { return cmp.Compare(a.name, b.name) })
	}
}

// bindEdges reads the order between channels and between hosts.
func (w *World) bindEdges(rel *fleet.Release) {
	for _, ch := range w.channels {
		ch.after = nil
	}
	for _, e := range rel.Fleet.ChannelEdges {
		ch := w.channel(e.Gated)
		ch.after = append(ch.after, channelEdge{before: w.channel(e.Gates), reason: text(e.Reason)})
	}
	for _, e := range rel.Fleet.Edges {
		gated, first := w.hosts[e.Gated], w.hosts[e.Gates]
		if gated != nil && first != nil {
			gated.after = append(gated.after, hostEdge{first: first, reason: text(e.Reason)})
			first.before = append(first.before, gated)
		}
	}
}

func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// clearUndeclared forgets quarantines of closures that no host of the channel is declared to run any more.
func (w *World) clearUndeclared(now time.Time) {
	if len(w.quarantines) == 0 {
		return
	}
	wanted := map[quarantineKey]struct{}{}
	for name, cr := range w.rel.Channels {
		for _, e := range cr.Manifest.HostSet {
			wanted[quarantineKey{name, e.TargetClosure}] = struct{}{}
		}
	}
	for _, k := range slices.SortedFunc(maps.Keys(w.quarantines), compareQuarantines) {
		if _, ok := wanted[k]; !ok {
			w.clearQuarantine(w.quarantines[k], "nothing declares it", "", now)
		}
	}
}
