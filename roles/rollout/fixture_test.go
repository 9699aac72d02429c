package rollout

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"nixfleet/nixops/fleet"
	"nixfleet/roles/protocol"
)

var epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// spec is a small fleet in the words of the tests.
type spec struct {
	signed   time.Time
	opened   time.Time // zero: signed
	channels []channelSpec
	budgets  []budgetSpec
	edges    [][2]string       // first, then gated
	order    [][2]string       // channels: first, then gated
	reboots  map[string]string // host -> declared reboot policy
	maybe    bool              // waves may be empty
	holds    string            // what the order between channels holds
	until    string            // slots of the budgets are held
}

type channelSpec struct {
	name   string
	waves  []waveSpec
	revert bool
	mode   string
	fresh  int // minutes, 0: 1440
	// Its maintenance windows, and why it waits for none of them.
	maintenance *fleet.Maintenance
	emergency   string
	// The threshold of its policy; 0: none.
	minHosts, minPercent uint32
}

type waveSpec struct {
	soak  time.Duration
	hosts map[string]string // host to closure; "" is not a closure
}

type budgetSpec struct {
	tag   string
	hosts []string
	max   int // -1: none
	pct   int // 0: none
}

func one(soak time.Duration, pairs ...string) waveSpec {
	w := waveSpec{soak: soak, hosts: map[string]string{}}
	for i := 0; i < len(pairs); i += 2 {
		w.hosts[pairs[i]] = pairs[i+1]
	}
	return w
}

func ptr[T any](v T) *T { return &v }

func hash(parts ...any) string {
	s := sha256.Sum256([]byte(fmt.Sprint(parts...)))
	return hex.EncodeToString(s[:])
}

// release builds what fleet.LoadRelease would return, as far as decisions depend on it.
func (s spec) release() *fleet.Release {
	if s.signed.IsZero() {
		s.signed = epoch
	}
	if s.opened.IsZero() {
		s.opened = s.signed
	}
	f := &fleet.Fleet{
		Hosts: map[string]*fleet.Host{}, Channels: map[string]fleet.Channel{},
		RolloutPolicies: map[string]fleet.Policy{}, Waves: map[string][]fleet.Wave{},
	}
	r := &fleet.Release{Fleet: f, SignedAt: s.signed, FleetHash: hash(s.signed),
		Channels: map[string]*fleet.ChannelRelease{}}
	var budgets []fleet.ManifestBudget
	for _, b := range s.budgets {
		mb := fleet.ManifestBudget{Selector: fleet.Selector{Tags: []string{b.tag}}, Hosts: b.hosts}
		if b.max >= 0 {
			mb.MaxInFlight = ptr(uint32(b.max))
		}
		if b.pct > 0 {
			mb.MaxInFlightPct = ptr(uint32(b.pct))
		}
		budgets = append(budgets, mb)
		f.DisruptionBudgets = append(f.DisruptionBudgets, fleet.Budget{
			Selector: mb.Selector, MaxInFlight: mb.MaxInFlight, MaxInFlightPct: mb.MaxInFlightPct, SlotUntil: s.until,
		})
	}
	for _, c := range s.channels {
		ch := fleet.Channel{RolloutPolicy: c.name, FreshnessWindow: uint32(cmp.Or(c.fresh, 1440)),
			Maintenance: c.maintenance, Emergency: c.emergency}
		ch.Compliance.Mode = cmp.Or(c.mode, "disabled")
		f.Channels[c.name] = ch
		policy := fleet.Policy{OnHealthFailure: fleet.OnFailureHalt}
		if c.revert {
			policy.OnHealthFailure = fleet.OnFailureRollback
		}
		if c.minHosts+c.minPercent > 0 {
			policy.FailureThreshold = &fleet.FailureThreshold{}
			if c.minHosts > 0 {
				policy.FailureThreshold.MinHosts = &c.minHosts
			}
			if c.minPercent > 0 {
				policy.FailureThreshold.MinPercent = &c.minPercent
			}
		}
		f.RolloutPolicies[c.name] = policy
		m := &fleet.Manifest{Channel: c.name, DisplayName: c.name + "@test",
			ChannelRef: "commit-" + s.signed.Format("150405"), DisruptionBudgets: budgets}
		for i, wv := range c.waves {
			names := slices.Sorted(maps.Keys(wv.hosts))
			f.Waves[c.name] = append(f.Waves[c.name], fleet.Wave{
				Hosts: names, SoakSeconds: ptr(uint32(wv.soak / time.Second)), MayBeEmpty: s.maybe,
			})
			for _, h := range names {
				d := &fleet.Host{Channel: c.name, RebootPolicy: jsontext.Value(s.reboots[h])}
				if closure := wv.hosts[h]; closure != "" {
					d.ClosureHash = ptr(closure)
					m.HostSet = append(m.HostSet, fleet.HostEntry{Hostname: h, TargetClosure: closure, WaveIndex: uint32(i)})
				}
				f.Hosts[h] = d
			}
		}
		if len(c.waves) == 1 && c.waves[0].soak == 0 {
			f.Waves[c.name] = nil // all at once
		}
		slices.SortFunc(m.HostSet, func(a, b fleet.HostEntry) int { return cmp.Compare(a.Hostname, b.Hostname) })
		if len(m.HostSet) == 0 {
			continue
		}
		c.maintenance, c.emergency = nil, "" // no part of the intent
		intent := hash(c, s.budgets)
		r.Channels[c.name] = &fleet.ChannelRelease{
			Channel: c.name, RolloutID: hash(intent, s.signed), Manifest: m, Intent: intent, OpenedAt: s.opened,
		}
	}
	for _, e := range s.edges {
		f.Edges = append(f.Edges, fleet.Edge{Gates: e[0], Gated: e[1]})
	}
	for _, e := range s.order {
		f.ChannelEdges = append(f.ChannelEdges, fleet.ChannelEdge{Gates: e[0], Gated: e[1], Holds: s.holds})
	}
	return r
}

// disk is a store that keeps what Changes say, as the real one does.
type disk struct {
	rollouts    map[[2]string]Rollout
	hosts       map[[2]string]HostRecord
	dispatches  map[string]Dispatch
	quarantines map[[2]string]Quarantine
	twins       map[string]Twins
	freezes     map[string]Freeze
	events      []protocol.Event
}

func newDisk() *disk {
	return &disk{map[[2]string]Rollout{}, map[[2]string]HostRecord{}, map[string]Dispatch{},
		map[[2]string]Quarantine{}, map[string]Twins{}, map[string]Freeze{}, nil}
}

func (d *disk) apply(c Change) {
	for _, r := range c.Rollouts {
		d.rollouts[[2]string{r.Channel, r.Intent}] = r
	}
	for _, h := range c.Hosts {
		d.hosts[[2]string{h.Host, h.Intent}] = h
	}
	for _, x := range c.Dispatches {
		d.dispatches[fmt.Sprint(x.Host, x.Intent, x.DispatchedAt.UnixNano())] = x
	}
	for _, q := range c.Quarantines {
		d.quarantines[[2]string{q.Channel, q.Closure}] = q
	}
	for _, t := range c.Twins {
		d.twins[t.Host] = t
	}
	for _, f := range c.Freezes {
		d.freezes[f.Channel] = f
	}
	d.events = append(d.events, c.Events...)
}

func (d *disk) state() State {
	return State{
		Rollouts: slices.Collect(maps.Values(d.rollouts)), Hosts: slices.Collect(maps.Values(d.hosts)),
		Dispatches: slices.Collect(maps.Values(d.dispatches)), Quarantines: slices.Collect(maps.Values(d.quarantines)),
		Twins: slices.Collect(maps.Values(d.twins)), Freezes: slices.Collect(maps.Values(d.freezes)),
	}
}

// bench is a World with a clock, a disk and one simulated machine per host.
type bench struct {
	t       testing.TB
	w       *World
	now     time.Time
	disk    *disk
	rel     *fleet.Release
	boxes   map[string]*box
	last    Change
	wakeups map[string]int
}

// box is what one machine is and says.
type box struct {
	running, boot string
	away          bool
	v1            bool
	mode          string
	probe         string
	phase         *protocol.Phase
	held          string
	wait          time.Duration
	fetch, fetchR string
	confirmed     *time.Time
	attest        bool
}

func start(t testing.TB, s spec) *bench {
	t.Helper()
	b := &bench{t: t, now: epoch, disk: newDisk(), boxes: map[string]*box{}, wakeups: map[string]int{}}
	b.w = New(State{}, DefaultLimits(), b.now)
	b.accept(s)
	return b
}

func (b *bench) box(h string) *box {
	x := b.boxes[h]
	if x == nil {
		x = &box{running: "old-" + h, boot: "boot-1"}
		b.boxes[h] = x
	}
	return x
}

func (b *bench) took(c Change) Change {
	b.last = c
	b.disk.apply(c)
	for _, h := range c.Wake {
		b.wakeups[h]++
	}
	return c
}

func (b *bench) accept(s spec) {
	b.rel = s.release()
	for h := range b.rel.Fleet.Hosts {
		b.box(h)
	}
	b.took(b.w.Accept(b.rel, b.now))
}

func (b *bench) observation(h string) Observation {
	x := b.box(h)
	o := Observation{
		Closure: x.running, BootID: x.boot, KnowsLease: !x.v1, ProbeMode: x.mode, Phase: x.phase, Held: x.held, Wait: x.wait,
		Fetch: Fetch{Result: x.fetch, Rollout: x.fetchR}, LastConfirmedAt: x.confirmed, Attested: x.attest,
	}
	if x.probe != "" {
		o.Probes = []protocol.ProbeResult{{Status: x.probe}}
	}
	return o
}

func (b *bench) checkin(h string) Decision {
	b.t.Helper()
	d, c := b.w.Checkin(h, b.observation(h), b.now)
	b.took(c)
	if d.Target == nil && d.Rollback == nil && (d.Reason.Code == "" || d.Reason.Text == "" || d.Reason.Next == "" ||
		d.Reason.Gate == "") {
		b.t.Fatalf("host %s waits without a whole reason: %+v", h, d.Reason)
	}
	return d
}

// refused checks in and wants no target, for the given reason.
func (b *bench) refused(h, code string) {
	b.t.Helper()
	if d := b.checkin(h); d.Target != nil || d.Reason.Code != code {
		b.t.Fatalf("%s at %s: got target %v, reason %+v; want reason %s", h, b.now.Sub(epoch), d.Target, d.Reason, code)
	}
}

// offered checks in and wants a target.
func (b *bench) offered(h string) Target {
	b.t.Helper()
	d := b.checkin(h)
	if d.Target == nil {
		b.t.Fatalf("%s at %s: no target: %+v", h, b.now.Sub(epoch), d.Reason)
	}
	return *d.Target
}

func (b *bench) report(h string, r Report) {
	r.Counts = true
	if r.RolloutID == "" {
		r.RolloutID = b.id(h)
	}
	b.took(b.w.Report(h, r, b.now))
}

func (b *bench) id(h string) string {
	for _, c := range b.rel.Channels {
		for _, e := range c.Manifest.HostSet {
			if e.Hostname == h {
				return c.RolloutID
			}
		}
	}
	return ""
}

func (b *bench) confirm(h string) bool {
	ok, c := b.w.Confirm(h, b.id(h), b.box(h).running, b.now)
	b.took(c)
	return ok
}

// update takes a host through a whole dispatch.
func (b *bench) update(h string) {
	b.t.Helper()
	t := b.offered(h)
	b.report(h, Report{Event: "activation-started", Closure: t.Closure})
	b.box(h).running = t.Closure
	b.pass(5 * time.Second)
	if !b.confirm(h) {
		b.t.Fatalf("%s: confirm refused", h)
	}
	b.checkin(h)
}

func (b *bench) pass(d time.Duration) {
	b.now = b.now.Add(d)
	c, _ := b.w.Tick(b.now)
	b.took(c)
}

// live passes time with a check-in of every present host each 30 s; targets are taken and confirmed.
func (b *bench) live(d time.Duration) {
	b.t.Helper()
	for end := b.now.Add(d); b.now.Before(end); {
		b.pass(min(30*time.Second, end.Sub(b.now)))
		for _, h := range slices.Sorted(maps.Keys(b.boxes)) {
			if x := b.boxes[h]; !x.away {
				if d := b.checkin(h); d.Target != nil {
					x.running = d.Target.Closure
					b.confirm(h)
				}
			}
		}
	}
}

func (b *bench) state(h string, want HostState) {
	b.t.Helper()
	v, ok := b.w.Host(h, b.now)
	if !ok || v.State != want {
		b.t.Fatalf("%s at %s is %s (%+v), want %s", h, b.now.Sub(epoch), v.State, b.w.hosts.byName[h].rec, want)
	}
}

func (b *bench) rollout(channel string) RolloutView {
	b.t.Helper()
	for _, r := range b.w.Rollouts(b.now) {
		if r.Channel == channel && r.State != RolloutSuperseded {
			return r
		}
	}
	b.t.Fatalf("channel %s has no rollout", channel)
	return RolloutView{}
}

func (b *bench) wantRollout(channel string, state RolloutState, wave int) {
	b.t.Helper()
	if r := b.rollout(channel); r.State != state || r.Wave != wave {
		b.t.Fatalf("rollout of %s at %s is %s wave %d (%s; %s), want %s wave %d", channel, b.now.Sub(epoch), r.State, r.Wave,
			r.HaltReason, r.Reason.Text, state, wave)
	}
}

// restart makes a new World of what the disk holds.
func (b *bench) restart() {
	b.w = New(b.disk.state(), DefaultLimits(), b.now)
	b.took(b.w.Accept(b.rel, b.now))
}

// wipe loses the database.
func (b *bench) wipe() {
	b.disk = newDisk()
	b.w = New(State{Empty: true}, DefaultLimits(), b.now)
	b.took(b.w.Accept(b.rel, b.now))
}

func single(name string, waves ...waveSpec) spec {
	return spec{channels: []channelSpec{{name: name, waves: waves}}}
}

// Quarantines are the quarantines in force, sorted.
func (w *World) Quarantines() []Quarantine {
	var out []Quarantine
	for _, k := range slices.SortedFunc(maps.Keys(w.rollouts.quarantines), compareQuarantines) {
		out = append(out, w.rollouts.quarantines[k].Quarantine)
	}
	return out
}
