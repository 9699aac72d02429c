package tick

import (
	"maps"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/protocol"
	"nixfleet/roles/rollout"
)

// observed is the v1 observed.json, as far as a decision depends on it.
type observed struct {
	ChannelRefs    map[string]string       `json:"channelRefs" shape:"R"`
	LastRolledRefs map[string]string       `json:"lastRolledRefs" shape:"R"`
	HostState      map[string]observedHost `json:"hostState" shape:"R"`
	ActiveRollouts []observedRollout       `json:"activeRollouts" shape:"R"`

	// By rollout id: compliance failures by host.
	Compliance map[string]jsontext.Value `json:"outstandingComplianceEventsByRollout" shape:"D"`
	// By host.
	ProbesPassing  map[string]jsontext.Value `json:"hostProbesPassing" shape:"D"`
	ProbesObserved map[string]jsontext.Value `json:"hostProbesObserved" shape:"D"`
	// By channel: closures.
	Quarantined map[string]jsontext.Value `json:"quarantinedClosures" shape:"D"`
}

type observedHost struct {
	Online            bool    `json:"online" shape:"R"`
	CurrentGeneration *string `json:"currentGeneration" shape:"N"`
}

type observedRollout struct {
	ID           string                   `json:"id" shape:"R"`
	Channel      string                   `json:"channel" shape:"R"`
	TargetRef    string                   `json:"targetRef" shape:"R"`
	State        string                   `json:"state" shape:"R"`
	CurrentWave  uint32                   `json:"currentWave" shape:"R"`
	HostStates   map[string]string        `json:"hostStates" shape:"R"`
	HealthySince map[string]pki.Timestamp `json:"lastHealthySince" shape:"D"`
	TerminalAt   *pki.Timestamp           `json:"terminalAt" shape:"N"`
}

// action is one line of the tick, with the members of its kind.
type action struct {
	Action    string   `json:"action"`
	Channel   string   `json:"channel,omitzero"`
	Rollout   string   `json:"rollout,omitzero"`
	Host      string   `json:"host,omitzero"`
	TargetRef string   `json:"target_ref,omitzero"`
	NewWave   *int     `json:"new_wave,omitzero"`
	Blocked   *int     `json:"blocked_wave,omitzero"`
	Failing   []string `json:"failing_hosts,omitzero"`
	Events    *int     `json:"failing_events_count,omitzero"`
	BlockedBy string   `json:"blocked_by,omitzero"`
	Which     string   `json:"which,omitzero"`
	RetireAt  string   `json:"retire_at,omitzero"`
	Reason    string   `json:"reason,omitzero"`
	Hosts     []string `json:"hosts,omitzero"`
}

// tickPlan asks the decision procedure what it would do about what was observed.
type tickPlan struct {
	rel     *fleet.Release
	o       *observed
	now     time.Time
	world   *rollout.World
	active  map[string]*observedRollout // by channel: the one that the release goes on with
	actions []action
}

func tickActions(rel *fleet.Release, trust *pki.Trust, o *observed, now time.Time) []action {
	p := &tickPlan{rel: rel, o: o, now: now, active: map[string]*observedRollout{}, actions: []action{}}
	p.world = rollout.New(p.state(), rollout.DefaultLimits(), now)
	p.channels()
	p.take(p.world.Accept(rel, now))
	p.hosts()
	change, _ := p.world.Tick(now)
	p.take(change)
	p.blockedWaves()
	for _, d := range p.world.Deferrals(now) {
		p.add(action{Action: "rollout_deferred", Channel: d.Channel, TargetRef: d.TargetRef, BlockedBy: d.BlockedBy,
			Reason: d.Reason})
	}
	for _, root := range []struct {
		name string
		slot *pki.KeySlot
	}{{"ciReleaseKey", &trust.CIReleaseKey}, {"orgRootKey", trust.OrgRootKey}} {
		if root.slot.RotationDue(now) {
			p.add(action{Action: "rotate_trust_root", Which: root.name, RetireAt: root.slot.RetireAt.String()})
		}
	}
	if offline := p.offline(); len(offline) > 0 {
		p.add(action{Action: "skip_summary", Reason: "offline", Hosts: offline})
	}
	return p.actions
}

func (p *tickPlan) add(a action) { p.actions = append(p.actions, a) }

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// state is where the observed rollouts stand, for those that the release goes
// on with: the same id, or the same commit.
func (p *tickPlan) state() rollout.State {
	var st rollout.State
	for i := range p.o.ActiveRollouts {
		r := &p.o.ActiveRollouts[i]
		c := p.rel.Channels[r.Channel]
		if c == nil || r.TerminalAt != nil || r.ID != c.RolloutID && r.TargetRef != c.RolloutID &&
			r.TargetRef != c.Manifest.ChannelRef {
			continue
		}
		p.active[r.Channel] = r
		p.halt(r)
		st.Rollouts = append(st.Rollouts, rollout.Rollout{
			Intent: c.Intent, RolloutID: c.RolloutID, Channel: r.Channel, ChannelRef: c.Manifest.ChannelRef,
			IDs:   []string{r.ID, c.RolloutID},
			State: rollout.RolloutState(r.State), Wave: int(r.CurrentWave), WaveSince: c.OpenedAt, OpenedAt: c.OpenedAt,
			CreatedAt: p.longAgo(c.OpenedAt),
		})
		failures := decoded[map[string]int](p.o.Compliance[r.ID])
		for _, host := range sorted(r.HostStates) {
			h := standing(r, c, host)
			if failures[host] > 0 {
				h.Failures = []string{"compliance:observed"}
			}
			st.Hosts = append(st.Hosts, h)
			if h.State == rollout.Dispatched || h.State == rollout.Activating || h.State == rollout.ConfirmWindow {
				st.Dispatches = append(st.Dispatches, p.inFlight(h, c))
			}
		}
	}
	for _, channel := range sorted(p.o.Quarantined) {
		for _, closure := range decoded[[]string](p.o.Quarantined[channel]) {
			st.Quarantines = append(st.Quarantines, rollout.Quarantine{Channel: channel, Closure: closure, Since: p.now})
		}
	}
	return st
}

// standing is where a host of an observed rollout stands.
func standing(r *observedRollout, c *fleet.ChannelRelease, host string) rollout.HostRecord {
	h := rollout.HostRecord{
		Host: host, Intent: c.Intent, Channel: r.Channel, State: rollout.HostState(r.HostStates[host]), Since: c.OpenedAt,
		Attempt: 1,
	}
	if h.State == rollout.Queued {
		h.Attempt = 0
	}
	if i, ok := c.Index[host]; ok {
		h.Wave, h.Closure = int(c.Manifest.HostSet[i].WaveIndex), c.Manifest.HostSet[i].TargetClosure
	}
	if since, ok := r.HealthySince[host]; ok {
		h.HealthySince, h.Since = &since.Time, since.Time
	}
	return h
}

// longAgo is when a rollout that was opened then began, for a World that is to believe the observed state: in a younger
// one, hosts that have not been heard count as in flight.
func (p *tickPlan) longAgo(opened time.Time) time.Time {
	limits := rollout.DefaultLimits()
	if heard := p.now.Add(-limits.Lease - limits.ConfirmWindow - limits.Margin - time.Second); heard.Before(opened) {
		return heard
	}
	return opened
}

// inFlight is the dispatch of a host that has its target already. The observed state does not say since when, so its
// times begin now: the host is not told again, and holds its slots.
func (p *tickPlan) inFlight(h rollout.HostRecord, c *fleet.ChannelRelease) rollout.Dispatch {
	limits := rollout.DefaultLimits()
	startBy := p.now.Add(limits.Lease)
	deadline := startBy.Add(limits.ConfirmWindow)
	return rollout.Dispatch{
		Host: h.Host, RolloutID: c.RolloutID, Intent: c.Intent, Channel: h.Channel, Wave: h.Wave, Closure: h.Closure,
		ChannelRef: c.Manifest.ChannelRef, State: rollout.DispatchPending,
		DispatchedAt: p.now, StartBy: startBy, ConfirmDeadline: deadline, SlotUntil: deadline.Add(limits.Margin),
	}
}

// halt stops a rollout that a host has failed in, as the policy of its channel says. The host's own report would have
// done so on a control plane that runs; here there is only its state.
func (p *tickPlan) halt(r *observedRollout) {
	if rollout.RolloutState(r.State) != rollout.Executing {
		return
	}
	for _, host := range sorted(r.HostStates) {
		if rollout.HostState(r.HostStates[host]) != rollout.Failed {
			continue
		}
		r.State = string(rollout.Halted)
		policy := p.rel.Fleet.RolloutPolicies[p.rel.Fleet.Channels[r.Channel].RolloutPolicy]
		if policy.OnHealthFailure == fleet.OnFailureRollback {
			r.State = string(rollout.Reverting)
		}
		p.add(action{Action: "halt_rollout", Rollout: r.ID, Reason: "host " + host + ": failed"})
		return
	}
}

// decoded is the zero value for what has another shape: v1's contract leaves
// these members' insides open.
func decoded[T any](doc jsontext.Value) T {
	var v, none T
	if json.Unmarshal(doc, &v) != nil {
		return none
	}
	return v
}

func (p *tickPlan) channels() {
	for _, channel := range sorted(p.o.ChannelRefs) {
		ref := p.o.ChannelRefs[channel]
		_, declared := p.rel.Fleet.Channels[channel]
		switch {
		case !declared:
			p.add(action{Action: "channel_unknown", Channel: channel})
		case p.o.LastRolledRefs[channel] != ref && p.active[channel] == nil:
			p.add(action{Action: "open_rollout", Channel: channel, TargetRef: ref})
		}
	}
	for i := range p.o.ActiveRollouts {
		channel := p.o.ActiveRollouts[i].Channel
		_, declared := p.rel.Fleet.Channels[channel]
		_, told := p.o.ChannelRefs[channel]
		if !declared && !told && !slices.ContainsFunc(p.o.ActiveRollouts[:i], func(r observedRollout) bool {
			return r.Channel == channel
		}) {
			p.add(action{Action: "channel_unknown", Channel: channel})
		}
	}
}

// take turns what the procedure did into lines.
func (p *tickPlan) take(c rollout.Change) {
	for _, e := range c.Events {
		if p.active[e.Channel] == nil {
			continue // its opening says it all
		}
		switch e.Kind {
		case protocol.LogWaveOpened:
			if v, ok := p.world.Rollout(e.RolloutID, p.now); ok {
				p.add(action{Action: "promote_wave", Rollout: e.RolloutID, NewWave: &v.Wave})
			}
		case protocol.LogConverged:
			p.add(action{Action: "converge_rollout", Rollout: e.RolloutID})
		case protocol.LogHalted, protocol.LogReverting:
			p.add(action{Action: "halt_rollout", Rollout: e.RolloutID, Reason: e.Detail})
		}
	}
	for _, h := range c.Hosts {
		if h.State == rollout.Soaked && p.active[h.Channel] != nil {
			p.add(action{Action: "soak_host", Rollout: p.rel.Channels[h.Channel].RolloutID, Host: h.Host})
		}
	}
}

// hosts lets every host that is there check in.
func (p *tickPlan) hosts() {
	for _, name := range sorted(p.o.HostState) {
		h := p.o.HostState[name]
		if !h.Online {
			continue
		}
		seen := rollout.Observation{KnowsLease: true}
		if h.CurrentGeneration != nil {
			seen.Closure = *h.CurrentGeneration
		}
		if decoded[bool](p.o.ProbesObserved[name]) && !decoded[bool](p.o.ProbesPassing[name]) {
			seen.ProbeMode, seen.Probes = fleet.ModeEnforce, []protocol.ProbeResult{{Status: protocol.ProbeFail}}
		}
		d, change := p.world.Checkin(name, seen, p.now)
		p.take(change)
		switch {
		case d.Target != nil:
			p.add(action{Action: "dispatch_host", Rollout: d.Target.RolloutID, Host: name, TargetRef: d.Target.ChannelRef})
		case d.Rollback != nil:
			p.add(action{Action: "rollback_host", Rollout: d.Rollback.Rollout, Host: name, TargetRef: d.Rollback.TargetRef})
		default:
			p.add(action{Action: "skip", Host: name, Reason: d.Reason.Code})
		}
	}
}

// blockedWaves names the hosts whose compliance failures hold the next wave.
func (p *tickPlan) blockedWaves() {
	for _, channel := range sorted(p.active) {
		r := p.active[channel]
		v, ok := p.world.Rollout(p.rel.Channels[channel].RolloutID, p.now)
		if !ok || v.Reason.Code != rollout.CodeCompliance {
			continue
		}
		failures, next, count := decoded[map[string]int](p.o.Compliance[r.ID]), v.Wave+1, 0
		for _, n := range failures {
			count += n
		}
		p.add(action{Action: "wave_blocked", Rollout: v.RolloutID, Blocked: &next, Failing: sorted(failures), Events: &count})
	}
}

func (p *tickPlan) offline() []string {
	var names []string
	for _, name := range sorted(p.o.HostState) {
		if !p.o.HostState[name].Online {
			names = append(names, name)
		}
	}
	return names
}
