package agent

import (
	"fmt"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"nixfleet/nixops/disk"
	"nixfleet/roles/agent/verify"
)

// metricsFile is what the textfile collector of Prometheus's node_exporter reads: a
// control plane that withholds releases would hardly say so in metrics of its own.
type metricsFile struct {
	path    string // empty: none
	written string
	at      time.Time
	said    said // of a failure

	log      zerolog.Logger
	status   *statusFile
	work     *work
	memory   *memory
	verifier *verify.Verifier
}

// contactEvery is how often the file is written for a newer contact alone.
const contactEvery = time.Minute

// values are the numbers of the agent by name, of the units in their names.
func (f *metricsFile) values() (steady, all string) {
	var s status
	f.status.note(func(now *status) { s = *now })
	var b strings.Builder
	gauge := func(name, help string, value any) {
		fmt.Fprintf(&b, "# HELP nixfleet_agent_%[1]s %[2]s\n# TYPE nixfleet_agent_%[1]s gauge\n"+
			"nixfleet_agent_%[1]s %[3]v\n", name, help, value)
	}
	truth := func(is bool) int {
		if is {
			return 1
		}
		return 0
	}
	q := f.memory.quarantine.Load()
	gauge("release_stale", "Whether the newest verified release is past its freshness window.", truth(s.Stale != ""))
	gauge("release_signed_timestamp_seconds", "When the newest verified release was signed.", f.verifier.SignedAt().Unix())
	gauge("refused_answers", "Times that what the control plane said was not believed.", f.status.refused.Load())
	gauge("held", "Whether root holds this host.", truth(f.memory.hold.Load() != nil))
	gauge("quarantined", "Whether a closure failed here and is not tried again.", truth(q != nil && q.over()))
	gauge("reboot_pending", "Whether something waits for a reboot.", truth(s.RebootPending != ""))
	gauge("activating", "Whether an activation is under way.", truth(f.work.busy.Load()))
	steady = b.String()
	gauge("last_contact_timestamp_seconds", "When the control plane last answered a check-in.",
		max(0, s.LastContact.Unix()))
	return steady, b.String()
}

// write brings the file up to date. It is for people: a failure is logged, once
// for each cause.
func (f *metricsFile) write() {
	if f.path == "" {
		return
	}
	steady, all := f.values()
	if steady == f.written && time.Since(f.at) < contactEvery {
		return
	}
	if err := disk.Replace(f.path, []byte(all), 0o644); err != nil {
		if !f.said.lately(err.Error()) {
			f.log.Warn().Err(err).Msg("metrics not written")
		}
		return
	}
	f.written, f.at = steady, time.Now()
}
