package rollout

import (
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/roles/protocol"
)

// health is what a host's probes say by its mode.
type health uint8

const (
	well    health = iota // lets the host soak
	notRun                // nothing has reported yet, or not everything that must
	failing               // something fails
)

// judge applies the modes of wire.md §5: enforce wants every probe to pass, permissive none to fail, either at
// least one that has run. Other modes do not gate, whatever the probes say: v1 agents report probes that never
// run when health checks are disabled.
func judge(mode string, probes []protocol.ProbeResult) health {
	if mode != fleet.ModeEnforce && mode != fleet.ModePermissive {
		return well
	}
	ran, all := false, true
	for _, p := range probes {
		switch p.Status {
		case protocol.ProbeFail:
			return failing
		case protocol.ProbePass:
			ran = true
		default:
			all = false
		}
	}
	if !ran || (mode == fleet.ModeEnforce && !all) {
		return notRun
	}
	return well
}

// settleHealth starts and stops the clock of failing probes of a healthy host on its target. Probes that have
// not run neither start nor stop it.
func (hs *hosts) settleHealth(h *host, now time.Time) {
	if st := h.state(); st != Healthy && st != Soaked || h.said.Closure != h.closure {
		return
	}
	switch since := h.rec.FailingSince; {
	case h.proof.health == failing && since == nil:
		hs.edit(h, now, func(r *record) { since := now; r.FailingSince = &since })
	case h.proof.health == well && since != nil:
		hs.edit(h, now, func(r *record) { r.FailingSince = nil })
		hs.w.changes.move(h.run)
	}
}

// probesFailed reports whether probes have failed for the sustained time, and the host says so still or fell silent
// while they failed.
func (hs *hosts) probesFailed(h *host, now time.Time) bool {
	since := h.rec.FailingSince
	if since == nil || !h.contact.reported || now.Before(since.Add(hs.w.limits.ProbeFailAfter)) {
		return false
	}
	return !now.After(h.contact.until) || hs.offline(h, now)
}
