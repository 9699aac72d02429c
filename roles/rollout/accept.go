package rollout

import (
	"cmp"
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
	hosts := w.rollouts.bindHosts(rel)
	names := map[string]struct{}{}
	for name := range w.rollouts.channels {
		names[name] = struct{}{}
	}
	for name := range rel.Fleet.Channels {
		names[name] = struct{}{}
	}
	ordered := slices.Sorted(maps.Keys(names))
	for _, name := range ordered {
		w.rollouts.bindChannel(name, hosts[name], now)
	}
	w.rollouts.prolongUnheard()
	w.rollouts.bindEdges(rel)
	w.budgets.bindBudgets(rel, now)
	w.rollouts.forsakeRevoked(rel, now)
	w.rollouts.dropHosts()
	w.hosts.stored = map[string]map[string]*record{}
	w.rollouts.clearUndeclared(now)
	for _, name := range ordered {
		if r := w.rollouts.channels[name].cur; r != nil && r.rel != nil {
			for i := range r.waves {
				for _, h := range r.waves[i].hosts {
					w.hosts.settle(h, now)
				}
			}
			w.changes.move(r)
		}
	}
	w.rollouts.flush(now)
	for _, name := range ordered {
		if r := w.rollouts.channels[name].cur; r != nil {
			w.rollouts.wakeOfferable(r, now)
		}
	}
}

// prolongUnheard waits for hosts as long as the leases of their rollouts may last, while a doubt is open at all.
func (rs *rollouts) prolongUnheard() {
	b := &rs.w.budgets
	if b.unheard.IsZero() {
		return
	}
	for _, ch := range rs.channels {
		if ch.cur != nil {
			b.unheard = later(b.unheard, b.born.Add(ch.cur.lease+ch.cur.confirmWindow))
		}
	}
	rs.w.timers.schedule(&b.clock, b.unheard)
}

// forsakeRevoked gives up hosts that the release revokes. One that is heard of has a newer certificate.
func (rs *rollouts) forsakeRevoked(rel *fleet.Release, now time.Time) {
	if rel.Revocations == nil {
		return
	}
	for _, entry := range rel.Revocations.Revocations {
		if h := rs.w.hosts.byName[entry.Hostname]; h != nil && rs.w.hosts.offline(h, now) {
			rs.w.forsake(h, now)
		}
	}
}

// bindHosts notes who is declared, and forgets what the last release said. It returns the hosts of each manifest, in
// its order.
func (rs *rollouts) bindHosts(rel *fleet.Release) map[string][]*host {
	for _, h := range rs.w.hosts.all {
		h.decl, h.slot.waitsFor = declaration{}, nil
	}
	// In the order in which they are asked and settled, so that they lie like that in memory.
	named := map[string][]*host{}
	for _, name := range sortedChannels(rel) {
		set := rel.Channels[name].Manifest.HostSet
		hosts := make([]*host, len(set))
		for i, e := range set {
			hosts[i] = rs.w.hosts.host(e.Hostname)
		}
		named[name] = hosts
	}
	for name, declared := range rel.Fleet.Hosts {
		h := rs.w.hosts.host(name)
		h.decl.named = true
		h.decl.channel = rs.channel(declared.Channel)
		switch mode, window := declared.Reboots(); mode {
		case "window":
			h.decl.reboots = "in its window, " + window
		case "immediate":
			h.decl.reboots = "at once"
		}
		if p := declared.Pin; p != nil {
			h.decl.pinned = "commit " + p.Commit
			if p.ExpiresAt != nil {
				h.decl.pinned += " until " + clockText(p.ExpiresAt.Time)
			}
			if p.Reason != "" {
				h.decl.pinned += " (" + p.Reason + ")"
			}
		}
	}
	return named
}

// dropHosts forgets hosts that no release names and that hold nothing.
func (rs *rollouts) dropHosts() {
	rs.w.hosts.all = slices.DeleteFunc(rs.w.hosts.all, func(h *host) bool {
		if h.decl.named || h.lease != nil || !h.slot.until.IsZero() {
			return false
		}
		rs.w.timers.unschedule(&h.timer)
		delete(rs.w.hosts.byName, h.name)
		return true
	})
}

// bindChannel renews, supersedes or ends the rollout of one channel and binds the hosts of its manifest.
func (rs *rollouts) bindChannel(name string, hosts []*host, now time.Time) {
	ch := rs.channel(name)
	cr := rs.w.rel.Channels[name]
	old := ch.cur
	switch {
	case cr == nil:
		if old != nil {
			rs.supersede(ch, "", now)
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
			rs.logRun(old, protocol.LogRenewed, "", "", "signed again at "+clockText(rs.w.rel.SignedAt), now)
		}
	default:
		if old != nil {
			rs.supersede(ch, cr.RolloutID, now)
		}
		opened := cr.OpenedAt
		if opened.IsZero() {
			opened = rs.w.rel.SignedAt
		}
		ch.past = slices.DeleteFunc(ch.past, func(p *run) bool { return p.Intent == cr.Intent })
		ch.cur = newRun(Rollout{
			Intent: cr.Intent, RolloutID: cr.RolloutID, Channel: name, ChannelRef: cr.Manifest.ChannelRef,
			IDs: []string{cr.RolloutID}, State: Planning, OpenedAt: at(opened.Add(time.Millisecond - 1)), CreatedAt: now,
		})
		delete(rs.w.hosts.stored, cr.Intent)
		opening := cr.Manifest.DisplayName + ", " + countText(len(cr.Manifest.HostSet), "host")
		rs.logRun(ch.cur, protocol.LogOpened, "", "", opening, now)
	}
	rs.bindRun(ch.cur, cr, hosts)
}

// supersede ends the newest rollout of a channel in favour of another, by its id.
func (rs *rollouts) supersede(ch *channel, by string, now time.Time) {
	r := ch.cur
	for i := range r.waves {
		for _, h := range r.waves[i].hosts {
			if h.run != r {
				continue
			}
			if h.lease != nil && h.lease.Intent == r.Intent {
				h.past.prior = h.rec
			}
			h.run, h.rec, h.slot.waitsFor = nil, nil, nil
		}
	}
	r.waves, r.rel = nil, nil
	rs.w.timers.unschedule(&r.timer)
	r.State, r.Hold = RolloutSuperseded, nil
	r.SupersededAt, r.SupersededBy = &now, by
	if r.TerminalAt == nil {
		r.TerminalAt = &now
	}
	rs.logRun(r, protocol.LogSuperseded, "", "", "", now)
	ch.past = slices.Insert(ch.past, 0, r)
	if len(ch.past) > maxPast {
		ch.past = ch.past[:maxPast]
	}
}

// bindRun reads what a release says about a rollout and counts its hosts, which are those of the manifest.
func (rs *rollouts) bindRun(r *run, cr *fleet.ChannelRelease, hosts []*host) {
	declared := rs.w.rel.Fleet.Channels[r.Channel]
	policy := rs.w.rel.Fleet.RolloutPolicies[declared.RolloutPolicy]
	r.rel, r.signedAt = cr, rs.w.rel.SignedAt
	r.freshness = fleet.Minutes(declared.FreshnessWindow)
	r.complianceMode = declared.Compliance.Mode
	r.times.bind(declared, rs.channel(r.Channel).freeze)
	r.revert = policy.OnHealthFailure == fleet.OnFailureRollback
	r.threshold = policy.FailureThreshold.Hosts(len(cr.Manifest.HostSet))
	r.confirmWindow, r.lease = rs.w.limits.ConfirmWindow, rs.w.limits.Lease
	if hd := cr.Head; hd != nil {
		if hd.ConfirmWindowSecs > 0 {
			r.confirmWindow = time.Duration(hd.ConfirmWindowSecs) * time.Second
		}
		if hd.LeaseSecs > 0 {
			r.lease = time.Duration(hd.LeaseSecs) * time.Second
		}
	}
	// A channel without waves is one wave without soak time; it still waits for its hosts [C5].
	declaredWaves := rs.w.rel.Fleet.Waves[r.Channel]
	r.waves = make([]wave, max(1, len(declaredWaves)))
	for i, dw := range declaredWaves {
		r.waves[i].soak, r.waves[i].mayBeEmpty = dw.Soak(), dw.MayBeEmpty
	}
	r.Wave = min(r.Wave, len(r.waves)-1)
	r.touched = [protocol.HostStateCount]int{}
	stored := rs.w.hosts.stored[r.Intent]
	for i, e := range cr.Manifest.HostSet {
		h := hosts[i]
		h.bind(r, e.TargetClosure, stored)
		h.wave = min(int(e.WaveIndex), len(r.waves)-1)
		r.waves[h.wave].hosts = append(r.waves[h.wave].hosts, h)
		r.count(h, 1)
	}
	for i := range r.waves {
		slices.SortFunc(r.waves[i].hosts, func(a, b *host) int { return cmp.Compare(a.name, b.name) })
	}
}

// bind gives a host its target in a rollout with the row that is stored of it, and forgets what was true of another.
func (h *host) bind(r *run, closure string, stored map[string]*record) {
	moved := h.run != r
	if h.run != nil && moved {
		h.slot.waitsFor = nil
	}
	if h.rec != nil && h.rec.Intent != r.Intent {
		if h.lease != nil && h.lease.Intent == h.rec.Intent {
			h.past.prior = h.rec
		}
		h.rec = nil
	}
	if h.rec == nil {
		h.rec = stored[h.name]
	}
	if moved || h.closure != closure {
		h.proof.healthAt = time.Time{}
	}
	if h.contact.reported && h.said.Closure == closure && h.proof.healthAt.IsZero() {
		h.proof.healthAt = h.contact.seen
	}
	if moved {
		h.proof.attested = time.Time{} // it was for another intent
	}
	h.run, h.closure = r, closure
}

// bindEdges reads the order between channels and between hosts.
func (rs *rollouts) bindEdges(rel *fleet.Release) {
	for _, ch := range rs.channels {
		ch.after = nil
	}
	for _, e := range rel.Fleet.ChannelEdges {
		ch := rs.channel(e.Gated)
		ch.after = append(ch.after, channelEdge{
			before: rs.channel(e.Gates), reason: text(e.Reason), opening: e.Holds == fleet.HoldsOpening,
		})
	}
	for _, e := range rel.Fleet.Edges {
		gated, first := rs.w.hosts.byName[e.Gated], rs.w.hosts.byName[e.Gates]
		if gated != nil && first != nil {
			gated.decl.after = append(gated.decl.after, hostEdge{first: first, reason: text(e.Reason)})
			first.decl.before = append(first.decl.before, gated)
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
func (rs *rollouts) clearUndeclared(now time.Time) {
	if len(rs.quarantines) == 0 {
		return
	}
	wanted := map[quarantineKey]struct{}{}
	for name, cr := range rs.w.rel.Channels {
		for _, e := range cr.Manifest.HostSet {
			wanted[quarantineKey{name, e.TargetClosure}] = struct{}{}
		}
	}
	for _, k := range slices.SortedFunc(maps.Keys(rs.quarantines), compareQuarantines) {
		if _, ok := wanted[k]; !ok {
			rs.clearQuarantine(rs.quarantines[k], "nothing declares it", "", now)
		}
	}
}
