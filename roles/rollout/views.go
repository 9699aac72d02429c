package rollout

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"nixfleet/roles/protocol"
)

// HostView is one host for people and for /v1/hosts.
type HostView struct {
	Host, Channel            string
	DeclaredClosure, Closure string // "" when unknown
	Online                   bool
	LastSeen                 *time.Time // since the control plane started
	State                    HostState  // "" when the host is in no rollout
	RolloutID                string
	Wave                     int
	FailingSince             *time.Time
	PendingReboot            bool
	Quarantined              string   // its declared closure when that is quarantined
	Failures                 []string // outstanding compliance failures
	Twins                    *Twins   // nil: one machine answers
	Reason                   protocol.Reason
}

// Converged reports whether the host runs what is declared.
func (v *HostView) Converged() bool {
	return v.LastSeen != nil && v.RolloutID != "" && v.Closure == v.DeclaredClosure
}

// RolloutView is one rollout for people and for /v1/rollouts.
type RolloutView struct {
	Rollout
	Open   bool            // Planning, Executing, Halted or Reverting
	Reason protocol.Reason // why it does not go on; Code "" when it is done or nothing holds it
}

// Host is the view of one host, with the reason that explain prints.
func (w *World) Host(name string, now time.Time) (HostView, bool) {
	h := w.hosts.byName[name]
	if h == nil {
		return HostView{}, false
	}
	v := w.hosts.view(h, at(now))
	v.Reason = w.Decide(name, now).Reason
	return v, true
}

// Hosts is the view of all declared hosts, sorted by name, without reasons (ask Host for one).
func (w *World) Hosts(now time.Time) []HostView {
	now = at(now)
	out := make([]HostView, 0, len(w.hosts.all))
	for _, h := range w.hosts.all {
		if h.decl.named {
			out = append(out, w.hosts.view(h, now))
		}
	}
	slices.SortFunc(out, func(a, b HostView) int { return cmp.Compare(a.Host, b.Host) })
	return out
}

func (hs *hosts) view(h *host, now time.Time) HostView {
	v := HostView{
		Host: h.name, DeclaredClosure: h.closure, Closure: h.said.Closure, Online: h.contact.reported && !hs.offline(h, now),
		PendingReboot: h.said.RebootPending || h.lease.deferred(),
	}
	if h.decl.channel != nil {
		v.Channel = h.decl.channel.name
	}
	if h.contact.reported {
		seen := h.contact.seen
		v.LastSeen = &seen
	}
	if t := h.contact.twins; t != nil {
		twins := *t
		v.Twins = &twins
	}
	if h.run == nil {
		v.DeclaredClosure = ""
		return v
	}
	v.State, v.RolloutID, v.Wave = h.state(), h.run.RolloutID, h.wave
	if hs.w.rollouts.quarantines[quarantineKey{h.run.Channel, h.closure}] != nil {
		v.Quarantined = h.closure
	}
	if r := h.rec; r != nil {
		v.FailingSince, v.Failures = r.FailingSince, slices.Clone(r.Failures)
	}
	return v
}

// Rollouts is the view of the remembered rollouts, newest first.
func (w *World) Rollouts(now time.Time) []RolloutView {
	now = at(now)
	var out []RolloutView
	for _, ch := range sortedMap(w.rollouts.channels) {
		if ch.cur != nil {
			out = append(out, w.rollouts.viewRun(ch.cur, now))
		}
		for _, r := range ch.past {
			out = append(out, w.rollouts.viewRun(r, now))
		}
	}
	slices.SortStableFunc(out, func(a, b RolloutView) int { return b.CreatedAt.Compare(a.CreatedAt) })
	return out
}

// Rollout finds a remembered rollout by any of its ids.
func (w *World) Rollout(id string, now time.Time) (RolloutView, bool) {
	r := w.rollouts.byID(id)
	if r == nil {
		return RolloutView{}, false
	}
	return w.rollouts.viewRun(r, at(now)), true
}

func (rs *rollouts) viewRun(r *run, now time.Time) RolloutView {
	v := RolloutView{Rollout: r.export(), Open: r.State.Open()}
	if v.Open && len(r.waves) > 0 {
		if why := rs.whole(r, now).blocked(promote); why != nil {
			v.Reason = rs.whole(r, now).reason(why)
		}
	}
	return v
}

// HostStates is the state of each host of a rollout; nil when only its header is remembered.
func (w *World) HostStates(id string) map[string]HostState {
	r := w.rollouts.byID(id)
	if r == nil || len(r.waves) == 0 {
		return nil
	}
	out := map[string]HostState{}
	for i := range r.waves {
		for _, h := range r.waves[i].hosts {
			out[h.name] = h.state()
		}
	}
	return out
}

// WaveView is one wave of a rollout.
type WaveView struct {
	Open         bool
	OpenedAt     *time.Time // of the newest open one
	Soak         time.Duration
	SoakingUntil *time.Time // when the last of those that soak now has soaked
	Hosts        int
	States       map[HostState]int
}

// Waves are those of a rollout, in order; nil when only its header is remembered.
func (w *World) Waves(id string) []WaveView {
	r := w.rollouts.byID(id)
	if r == nil {
		return nil
	}
	out := make([]WaveView, len(r.waves))
	for i := range r.waves {
		of := &r.waves[i]
		v := WaveView{
			Open: r.State != Planning && i <= r.Wave, Soak: of.soak, Hosts: len(of.hosts), States: map[HostState]int{},
		}
		if v.Open && i == r.Wave {
			since := r.WaveSince
			v.OpenedAt = &since
		}
		for _, state := range protocol.HostStates {
			if n := of.counts[state.Index()]; n > 0 {
				v.States[state] = n
			}
		}
		if v.States[Healthy] > 0 {
			v.SoakingUntil = r.soakingUntil(of)
		}
		out[i] = v
	}
	return out
}

// soakingUntil is when the last host of a wave that soaks now has soaked; nil when none does.
func (r *run) soakingUntil(of *wave) (last *time.Time) {
	for _, h := range of.hosts {
		if h.state() != Healthy || h.rec.HealthySince == nil {
			continue
		}
		if end := r.soakEnd(h); last == nil || end.After(*last) {
			last = &end
		}
	}
	return last
}

// Deferrals are the channels that wait for others, sorted by channel.
func (w *World) Deferrals(now time.Time) []protocol.Deferral {
	var out []protocol.Deferral
	for _, ch := range sortedMap(w.rollouts.channels) {
		r := ch.cur
		if r == nil || r.State != Planning && r.State != Executing {
			continue
		}
		var by []string
		var first *channelEdge
		for i := range ch.after {
			if e := &ch.after[i]; e.holdsOpening(r) || e.holdsHosts(r) {
				by = append(by, e.before.name)
				first = cmp.Or(first, e)
			}
		}
		if first == nil {
			continue
		}
		why := &hold{code: CodeChannelEdge, gate: "channel-edge", about: first}
		out = append(out, protocol.Deferral{
			Channel: ch.name, TargetRef: r.ChannelRef, Reason: w.rollouts.whole(r, at(now)).reason(why).Text,
			BlockedBy: strings.Join(by, ", "),
		})
	}
	return out
}
