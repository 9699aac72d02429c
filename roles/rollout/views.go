package rollout

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// HostView is one host for people and for /v1/hosts.
type HostView struct {
	Host, Channel                     string
	Declared                          bool
	DeclaredClosure, Closure, BootID  string // "" when unknown
	Online                            bool
	LastSeen                          *time.Time // since the control plane started
	State                             HostState  // "" when the host is in no rollout
	StateReason                       string     // code of HostRecord.Reason
	RolloutID, Intent                 string
	Wave, Attempt                     int
	Since, HealthySince, FailingSince *time.Time
	Converged                         bool // runs what is declared
	PendingReboot                     bool
	Quarantined                       string // its declared closure when that is quarantined
	Pinned, Held, Phase               string
	Previous                          string
	Failures                          []string // outstanding compliance failures
	Dispatch                          *Dispatch
	Reason                            Reason
}

// RolloutView is one rollout for people and for /v1/rollouts.
type RolloutView struct {
	Rollout
	Open   bool // Planning, Executing, Halted or Reverting
	Waves  []WaveView
	Reason Reason // why it does not go on; Code "" when it is done or nothing holds it
}

// WaveView counts the hosts of a wave.
type WaveView struct {
	Hosts  int
	Soak   time.Duration
	States map[HostState]int
}

// DeferralView is a channel whose newest rollout waits for another channel.
type DeferralView struct {
	Channel, TargetRef, BlockedBy, Reason string
}

// BudgetView is a disruption budget and its use.
type BudgetView struct {
	Selector                 string
	Members, Limit, InFlight int
}

// Host is the view of one host, with the reason that explain prints.
func (w *World) Host(name string, now time.Time) (HostView, bool) {
	h := w.hosts[name]
	if h == nil {
		return HostView{}, false
	}
	v := w.view(h, at(now))
	v.Reason = w.decide(h, at(now)).Reason
	return v, true
}

// Hosts is the view of all declared hosts, sorted by name, without reasons (ask Host for one).
func (w *World) Hosts(now time.Time) []HostView {
	now = at(now)
	out := make([]HostView, 0, len(w.hosts))
	for _, h := range w.hosts {
		if h.declared {
			out = append(out, w.view(h, now))
		}
	}
	slices.SortFunc(out, func(a, b HostView) int { return cmp.Compare(a.Host, b.Host) })
	return out
}

func (w *World) view(h *host, now time.Time) HostView {
	v := HostView{
		Host: h.name, Declared: h.declared, DeclaredClosure: h.closure, Closure: h.running, BootID: h.bootID,
		Online: h.reported && !w.offline(h, now), Pinned: h.pinned, Held: h.held, Phase: h.phase,
		PendingReboot: h.rebootDue || h.lease.deferred(),
	}
	if h.channel != nil {
		v.Channel = h.channel.name
	}
	if h.reported {
		seen := h.seen
		v.LastSeen = &seen
	}
	if h.lease != nil {
		d := h.lease.Dispatch
		v.Dispatch = &d
	}
	if h.run == nil {
		v.DeclaredClosure = ""
		return v
	}
	v.State, v.RolloutID, v.Intent, v.Wave = h.state(), h.run.RolloutID, h.run.Intent, h.wave
	v.Converged = h.reported && h.running == h.closure
	if w.quarantines[quarantineKey{h.run.Channel, h.closure}] != nil {
		v.Quarantined = h.closure
	}
	if r := h.rec; r != nil {
		since := r.Since
		v.Since, v.HealthySince, v.FailingSince = &since, r.HealthySince, r.FailingSince
		v.StateReason, v.Previous, v.Attempt, v.Failures = r.Reason, r.Previous, r.Attempt, slices.Clone(r.Failures)
	}
	return v
}

// Rollouts is the view of the remembered rollouts, newest first.
func (w *World) Rollouts(now time.Time) []RolloutView {
	now = at(now)
	var out []RolloutView
	for _, ch := range sortedMap(w.channels) {
		if ch.cur != nil {
			out = append(out, w.viewRun(ch.cur, now))
		}
		for _, r := range ch.past {
			out = append(out, w.viewRun(r, now))
		}
	}
	slices.SortStableFunc(out, func(a, b RolloutView) int { return b.CreatedAt.Compare(a.CreatedAt) })
	return out
}

// Rollout finds a remembered rollout by any of its ids.
func (w *World) Rollout(id string, now time.Time) (RolloutView, bool) {
	r := w.byID(id)
	if r == nil {
		return RolloutView{}, false
	}
	return w.viewRun(r, at(now)), true
}

func (w *World) viewRun(r *run, now time.Time) RolloutView {
	v := RolloutView{Rollout: r.export()}
	switch r.State {
	case Planning, Executing, Halted, Reverting:
		v.Open = true
	}
	states := []HostState{Queued, Dispatched, Activating, ConfirmWindow, Healthy, Soaked, Converged, Failed, Reverted, Deferred, Skipped}
	for i := range r.waves {
		wv := &r.waves[i]
		x := WaveView{Hosts: len(wv.hosts), Soak: wv.soak, States: map[HostState]int{}}
		for _, st := range states {
			if n := wv.counts[st.index()]; n > 0 {
				x.States[st] = n
			}
		}
		v.Waves = append(v.Waves, x)
	}
	if v.Open && len(r.waves) > 0 {
		if p := w.blocked(promote, subject{run: r}, now); p != nil {
			v.Reason = *p
		}
	}
	return v
}

// HostStates is the state of each host of a rollout; nil when only its header is remembered.
func (w *World) HostStates(id string) map[string]HostState {
	r := w.byID(id)
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

// Deferrals are the channels that wait for others, sorted by channel.
func (w *World) Deferrals(now time.Time) []DeferralView {
	var out []DeferralView
	for _, ch := range sortedMap(w.channels) {
		r := ch.cur
		if r == nil || r.State != Planning {
			continue
		}
		p := gateChannelEdge(w, subject{run: r}, at(now))
		if p == nil {
			continue
		}
		d := DeferralView{Channel: ch.name, TargetRef: r.ChannelRef, Reason: p.Text}
		var by []string
		for _, e := range ch.after {
			if c := e.before.cur; c != nil && c.State != RolloutConverged {
				by = append(by, e.before.name)
			}
		}
		d.BlockedBy = strings.Join(by, ", ")
		out = append(out, d)
	}
	return out
}

// Budgets are the disruption budgets of the current release, sorted.
func (w *World) Budgets(now time.Time) []BudgetView {
	var out []BudgetView
	for _, b := range sortedMap(w.budgets) {
		out = append(out, BudgetView{Selector: b.label, Members: b.members, Limit: b.limit, InFlight: b.inFlight(w, at(now))})
	}
	return out
}

// Quarantines are the quarantines in force, sorted.
func (w *World) Quarantines() []Quarantine {
	var out []Quarantine
	for _, q := range w.quarantines {
		out = append(out, q.Quarantine)
	}
	slices.SortFunc(out, func(a, b Quarantine) int {
		return cmp.Or(cmp.Compare(a.Channel, b.Channel), cmp.Compare(a.Closure, b.Closure))
	})
	return out
}
