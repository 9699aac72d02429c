package agent

import (
	"fmt"
	"strings"
	"time"

	"nixfleet/nixops/disk"
)

// metricsFile is what the textfile collector of Prometheus's node_exporter reads: a
// control plane that withholds releases would hardly say so in metrics of its own.
type metricsFile struct {
	path    string // empty: none
	written string
	at      time.Time
}

// contactEvery is how often the file is written for a newer contact alone.
const contactEvery = time.Minute

// metrics are the numbers of the agent by name, of the units in their names.
func (a *agent) metrics() (steady, all string) {
	var s status
	a.status.note(func(now *status) { s = *now })
	var b strings.Builder
	gauge := func(name, help string, value any) {
		fmt.Fprintf(&b, "# HELP nixfleet_agent_%[1]s %[2]s\n# TYPE nixfleet_agent_%[1]s gauge\nnixfleet_agent_%[1]s %[3]v\n", name, help, value)
	}
	truth := func(is bool) int {
		if is {
			return 1
		}
		return 0
	}
	q := a.quarantine.get()
	gauge("release_stale", "Whether the newest verified release is past its freshness window.", truth(s.Stale != ""))
	gauge("release_signed_timestamp_seconds", "When the newest verified release was signed.", a.verifier.SignedAt().Unix())
	gauge("held", "Whether root holds this host.", truth(a.hold.get() != nil))
	gauge("quarantined", "Whether a closure failed here and is not tried again.", truth(q != nil && q.over()))
	gauge("reboot_pending", "Whether something waits for a reboot.", truth(s.RebootPending != ""))
	gauge("activating", "Whether an activation is under way.", truth(a.busy.get()))
	steady = b.String()
	gauge("last_contact_timestamp_seconds", "When the control plane last answered a check-in.", max(0, s.LastContact.Unix()))
	return steady, b.String()
}

// writeMetrics brings the file up to date. It is for people: a failure is logged, once
// for each cause.
func (a *agent) writeMetrics() {
	f := &a.metricsFile
	if f.path == "" {
		return
	}
	steady, all := a.metrics()
	if steady == f.written && time.Since(f.at) < contactEvery {
		return
	}
	if err := disk.Replace(f.path, []byte(all), 0o644); err != nil {
		if !a.saidMetrics.lately(err.Error()) {
			a.log.Warn().Err(err).Msg("metrics not written")
		}
		return
	}
	f.written, f.at = steady, time.Now()
}
