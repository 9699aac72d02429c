package sim

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/protocol"
	"nixfleet/roles/rollout"
)

// The invariants, by the names under which they are reported.
const (
	invBudget       = "1 budgets hold"
	invWaves        = "2 waves and edges in order"
	invSigned       = "3 only what was signed for the host, never older"
	invHalt         = "4 a halt, a hold and a quarantine hold"
	invExact        = "5 proven or exactly what was before"
	invArrives      = "6 everybody arrives or says why"
	invSoak         = "7 soak is whole"
	invAcknowledged = "8 acknowledged once and for ever"
	invReason       = "9 who waits has a reason"
	invOutage       = "10 an outage quarantines nothing"
)

func hostLine(h *host) string {
	return pki.FormatHostKey(h.key.Crypto().Public().(ed25519.PublicKey), h.name)
}

// begins notes the releases a host knew when it began to fetch.
func (w *world) begins(h *host, closure string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	h.began = h.accepted
}

// arms and disarms are the ends of an activation.
func (w *world) arms(h *host, window time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	h.armed = time.Now().Add(window)
}

func (w *world) disarms(h *host) {
	w.mu.Lock()
	defer w.mu.Unlock()
	h.armed, h.switching = time.Time{}, false
}

// fired is a deadline that has run. An agent that died between its undo and its disarming left nothing to do: the
// activation is over if what it switched to does not run.
func (w *world) fired(h *host) {
	h.mu.Lock()
	machine := h.sim
	h.mu.Unlock()
	running, err := machine.CurrentSystem(context.Background())
	w.mu.Lock()
	over := err == nil && running != h.switchedTo
	w.mu.Unlock()
	if over {
		w.disarms(h)
	}
}

// acquit: a fault of ours may be why this host fails what it does now.
func (w *world) acquit(h *host) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.forge.releases {
		h.blameless[r.wanted[h.name]] = true
	}
}

// switches is looked at when a switch begins.
func (w *world) switches(h *host, closure string, back bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if back || w.ended {
		return
	}
	index := w.forge.newest(h.name, closure)
	switch {
	case index < 0:
		w.broken(invSigned, "%s switches to %s, which was never signed for it", h.name, closure)
	case index < h.began:
		w.broken(invSigned, "%s switches to %s of release %d, and had accepted release %d", h.name, closure, index, h.began)
	}
	if index >= 0 {
		// The clock may be behind, and what was fresh when it was offered is fetched first.
		if age := time.Since(w.forge.releases[index].at); age > window+worstSkew+w.scenario.fetch+lease {
			w.broken(invSigned, "%s switches to %s, which was last signed %s ago; the window is %s", h.name, closure, age,
				window)
		}
	}
	h.switching, h.switchedTo = true, closure
	if h.recalled {
		// Whoever speaks for the control plane decides when a host moves, and not where to.
		return
	}
	for i, b := range w.scenario.budgets {
		members, allowed := w.forge.member(b, i)
		var busy []string
		for _, m := range members {
			if w.hosts[m].switching && !w.hosts[m].recalled {
				busy = append(busy, m)
			}
		}
		if slices.Contains(members, h.name) && len(busy) > allowed {
			slices.Sort(busy)
			w.broken(invBudget, "budget %d allows %d at once, and %s are at it", i, allowed, strings.Join(busy, ", "))
		}
	}
	w.mayStart(h, closure)
}

// mayStart: the host's wave was opened, in some release that wants this closure.
func (w *world) mayStart(h *host, closure string) {
	told := ""
	for i := range w.forge.releases {
		r := &w.forge.releases[i]
		if r.wanted[h.name] != closure {
			continue
		}
		wave, intent := w.waveOf(h.name, r)
		if told = w.comesFirst(h, r); told != "" {
			continue
		}
		highest, known := w.opened[intent]
		if known && wave <= highest || intent == "" {
			return
		}
		told = fmt.Sprintf("%s of wave %d starts, and wave %d is the highest that was opened", h.name, wave, highest)
	}
	if told != "" && time.Since(w.emptied) > lease+confirmWindow {
		w.broken(invWaves, "%s", told)
	}
}

// comesFirst says which host has to run what a release wants of it before this
// one does, and never did; empty: none.
func (w *world) comesFirst(h *host, r *signedRelease) string {
	for _, e := range w.forge.fleet.Edges {
		first, wants := w.hosts[e.Gates], r.wanted[e.Gates]
		if e.Gated != h.name || r.entries[e.Gates].intent != r.entries[h.name].intent || first.ran[wants] {
			continue
		}
		if runs, err := first.sim.CurrentSystem(context.Background()); err == nil && runs != wants {
			return fmt.Sprintf("%s starts before %s, which comes first, has confirmed %s", h.name, e.Gates, wants)
		}
	}
	return ""
}

// waveOf finds the place of a host in a release.
func (w *world) waveOf(name string, r *signedRelease) (wave int, intent string) {
	for channel, intent := range r.intents {
		if m, at := r.entry(channel, name); m != nil {
			return int(m.HostSet[at].WaveIndex), intent
		}
	}
	return 0, ""
}

// acknowledged notes what the control plane answered, delivered or not.
func (w *world) acknowledged(h *host, r *http.Request, body []byte, got *answer) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case r.URL.Path == "/v1/enroll" && got.status == http.StatusOK:
		h.enrolled, h.enrolment, h.enrolledAt = r, body, time.Now()
	case r.URL.Path == protocol.ConfirmPath && got.status == http.StatusNoContent:
		var req protocol.ConfirmRequest
		if decode(body, &req) {
			w.acked[[2]string{h.name, req.Rollout}] = req.Generation.ClosureHash
			h.ran[req.Generation.ClosureHash] = true
			if intent := w.forge.intentOf(req.Rollout); h.confirmed[intent].IsZero() {
				h.confirmed[intent] = time.Now()
			}
		}
	case r.URL.Path == "/v1/agent/checkin" && got.status == http.StatusOK:
		h.lastContact = time.Now()
	}
}

// says notes that a host is about to be heard of, and what it says of its health.
func (w *world) says(h *host, r *http.Request, body []byte) {
	var req protocol.CheckinRequest
	if r.URL.Path != "/v1/agent/checkin" || !decode(body, &req) {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	h.lastContact = time.Now()
	h.well[req.CurrentGeneration.ClosureHash] = allPass(req.HealthProbes)
}

func allPass(probes []protocol.ProbeResult) bool {
	return len(probes) > 0 && !slices.ContainsFunc(probes,
		func(p protocol.ProbeResult) bool { return p.Status != protocol.ProbePass })
}

// delivered notes what a host was given.
func (w *world) delivered(h *host, r *http.Request, got *answer) {
	channel, ok := strings.CutPrefix(r.URL.Path, "/v1/heads/")
	if !ok || strings.Contains(channel, "/") || got.status != http.StatusOK {
		return
	}
	var head fleet.Head
	if !decode(got.body, &head) {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, release := range w.forge.releases {
		if _, ok := release.ids[head.RolloutID]; ok {
			h.accepted = max(h.accepted, i)
		}
	}
}

// happened is looked at for each event of the control plane's log.
func (w *world) happened(e protocol.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events, w.seq = append(w.events, e), e.Seq
	if w.trace != nil {
		fmt.Fprintf(w.trace, "LOG %s %s %s %s %s %s\n", time.Since(w.began), e.Channel, e.Host, e.Kind, e.Reason, e.Detail)
	}
	switch e.Kind {
	case protocol.LogOpened:
		w.newest[e.Channel] = e.Intent
		delete(w.converged, e.Intent)
		delete(w.halted, e.Intent)
		delete(w.opened, e.Intent)
	case protocol.LogSuperseded:
		// Nothing follows on a channel that has no hosts any more, and it holds nobody.
		delete(w.newest, e.Channel)
	case protocol.LogConverged:
		w.converged[e.Intent] = true
	case protocol.LogWaveOpened:
		w.opens(e)
	case protocol.LogHalted, protocol.LogReverting, protocol.LogPaused, protocol.LogCancelled:
		w.halted[e.Intent] = e.Kind
		if e.Kind == protocol.LogReverting {
			w.recalled[e.Intent] = true
		}
	case protocol.LogResumed:
		delete(w.halted, e.Intent)
	case protocol.LogRetry:
		w.retried[[2]string{e.Intent, e.Host}] = true
	case protocol.LogHost:
		w.moves(e)
	case protocol.LogDispatched:
		w.dispatches(e)
	case protocol.LogQuarantined:
		w.bad[[2]string{e.Channel, e.Detail}] = true
		w.quarantines(e)
	case protocol.LogQuarantineCleared:
		delete(w.bad, [2]string{e.Channel, e.Detail})
	}
}

// moves notes who is not waited for, and why.
func (w *world) moves(e protocol.Event) {
	key := [2]string{e.Intent, e.Host}
	if delete(w.skipped, key); strings.Contains(e.Detail, " to "+string(rollout.Skipped)) {
		w.skipped[key] = e.Reason
	}
}

// dispatches: nobody gets what is held back, but for the one attempt that a
// person asked for.
func (w *world) dispatches(e protocol.Event) {
	key := [2]string{e.Intent, e.Host}
	retried := w.retried[key]
	delete(w.retried, key)
	switch why := w.halted[e.Intent]; {
	case why == protocol.LogHalted && retried:
	case why != "":
		w.broken(invHalt, "%s is dispatched after %s", e.Host, why)
	}
	if _, closure, _ := strings.Cut(e.Detail, ", "); w.bad[[2]string{e.Channel, closure}] {
		w.broken(invHalt, "%s is given %s, which is quarantined on %s", e.Host, closure, e.Channel)
	}
}

// opens: each host of the waves before has soaked, or is not there.
func (w *world) opens(e protocol.Event) {
	before := w.opened[e.Intent]
	wave := before + 1
	if _, known := w.opened[e.Intent]; !known {
		wave = 0
	}
	w.opened[e.Intent] = wave
	if w.ended {
		return
	}
	if first := w.newest["c0"]; wave == 0 && w.scenario.chained && e.Channel == "c1" && first != "" &&
		!w.converged[first] {
		w.broken(invWaves, "channel c1 begins, and c0, which comes first, has not converged")
	}
	if wave == 0 {
		return
	}
	// The newest release of the intent says who is in which wave.
	var r *signedRelease
	for i := range w.forge.releases {
		for _, intent := range w.forge.releases[i].intents {
			if intent == e.Intent {
				r = &w.forge.releases[i]
			}
		}
	}
	if r == nil {
		return
	}
	soaks := w.forge.fleet.Waves[e.Channel]
	for name, h := range w.hosts {
		// Hosts of earlier waves had soaked or were passed over when those ended.
		place, intent := w.waveOf(name, r)
		if intent != e.Intent || place != wave-1 {
			continue
		}
		switch w.skipped[[2]string{e.Intent, name}] {
		case "", rollout.CodeOffline: // whether it is will be seen
		default:
			continue
		}
		current, err := h.sim.CurrentSystem(context.Background())
		if err != nil || time.Since(h.lastContact) > 150*time.Second { // it may count as offline by now
			continue
		}
		if current != r.wanted[name] {
			w.broken(invWaves, "wave %d of %s opens, and %s of wave %d runs %s, heard of %s ago", wave, e.Channel, name, place,
				current, time.Since(h.lastContact))
			continue
		}
		// What is said in the very moment may come after the decision.
		if w.scenario.probed && !h.well[current] && e.At.Sub(h.lastContact) > time.Second {
			w.broken(invSoak, "wave %d of %s opens, and %s of wave %d did not say last that all its probes pass", wave,
				e.Channel, name, place)
		}
		since := h.confirmed[e.Intent]
		if since.IsZero() || place >= len(soaks) {
			continue
		}
		if soaked := e.At.Sub(since); soaked < soaks[place].Soak()-2*time.Second {
			w.broken(invSoak, "wave %d of %s opens %s after %s confirmed; wave %d soaks %s", wave, e.Channel, soaked, name,
				place, soaks[place].Soak())
		}
	}
}

// quarantines: only what is bad, was recalled with what is bad, or met a fault
// on its host that looks like it.
func (w *world) quarantines(e protocol.Event) {
	if h := w.hosts[e.Host]; h != nil && len(h.blameless) > 0 {
		return
	}
	for i := range w.forge.releases {
		concerned, bad := false, false
		for host, closure := range w.forge.releases[i].wanted {
			concerned = concerned || strings.Contains(e.Reason+" "+e.Detail, closure)
			bad = bad || w.forge.bad[closure] || w.recalled[w.forge.releases[i].entries[host].intent]
		}
		if concerned && bad {
			return
		}
	}
	w.broken(invOutage, "%s: %s %s", e.Host, e.Reason, e.Detail)
}

// lookEvery is short beside every window.
const lookEvery = 3 * time.Minute

// look is the invariants that hold at any moment.
func (w *world) look(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(lookEvery + w.aside("look", time.Since(w.began))):
		}
		for n := range w.scenario.hosts {
			w.exact(w.hosts[name(n)])
		}
		w.reasons(ctx)
	}
}

// undoTime is how long an undo may take after its deadline: a foreign lock is
// waited for, and a slow disk makes all of it slower.
const undoTime = 5 * time.Minute

// exact: after its deadline a host is where it was, or proven; and what it
// runs is what it would boot.
func (w *world) exact(h *host) {
	w.mu.Lock()
	defer w.mu.Unlock()
	h.mu.Lock()
	gone, sim := h.off || h.severed || h.undoing > 0, h.sim
	h.mu.Unlock()
	if gone || w.ended {
		return
	}
	if !h.armed.IsZero() {
		if late := time.Since(h.armed); late > undoTime {
			w.broken(invExact, "%s is neither proven nor back %s after its deadline", h.name, late)
		}
		return
	}
	var at [3]string
	for i, read := range []func(context.Context) (string, error){sim.CurrentSystem, sim.Profile, sim.BootDefault} {
		var err error
		if at[i], err = read(context.Background()); err != nil {
			return
		}
	}
	if !h.switching && (at[0] != at[1] || at[1] != at[2]) {
		if h.torn++; h.torn > 3 {
			w.broken(invExact, "%s runs %s, has set %s and boots %s", h.name, at[0], at[1], at[2])
		}
		return
	}
	h.torn = 0
}

// reasons: whoever does not run what it should is told why.
func (w *world) reasons(ctx context.Context) {
	if !w.plane.up() {
		return
	}
	hosts, err := w.plane.operator.Hosts(ctx)
	if err != nil {
		return
	}
	for _, x := range hosts.Hosts {
		if !x.Converged && (x.Reason == nil || x.Reason.Code == "" || x.Reason.Text == "") {
			state := "in no rollout"
			if x.RolloutState != nil {
				state = fmt.Sprint(*x.RolloutState)
			}
			w.violate(invReason, "%s is %s and says nothing of it", x.Hostname, state)
		}
	}
}

// lookBack is what can be said only at the end.
func (w *world) lookBack() {
	w.mu.Lock()
	acked := w.acked
	w.mu.Unlock()
	for key, closure := range acked {
		// A confirm without a dispatch is accepted after a lost database; it leaves no row.
		trace, err := w.plane.operator.Trace(w.ctx, key[1])
		if err != nil {
			continue
		}
		states := map[string]bool{}
		for _, e := range trace.Events {
			if e.Host == key[0] && e.TargetClosureHash == closure && e.TerminalState != nil {
				states[*e.TerminalState] = true
			}
		}
		if len(states) > 0 && !states["converged"] {
			w.violate(invAcknowledged, "the confirm of %s by %s for rollout %s was acknowledged and is recorded as %v", closure,
				key[0], key[1][:8], states)
		}
	}
}

// health is what the hosts' probes are.
func (w *world) health() []byte {
	if !w.scenario.probed {
		return []byte(`{"mode":"disabled"}`)
	}
	return []byte(`{"mode":"enforce","units":[{"name":"web","unit":"web.service","intervalSeconds":30}]}`)
}

// renewToken gives a host whose certificate may be over a new one to enrol with.
func (h *host) renewToken() {
	h.w.must(os.WriteFile(h.path("token.new"), h.w.forge.token(h.name, h.key), 0o600))
	h.w.must(os.Rename(h.path("token.new"), h.path("token")))
}
