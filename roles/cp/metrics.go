package cp

import (
	"sync"
	"sync/atomic"
	"time"

	"nixfleet/roles/rollout"
)

// metrics are for Prometheus. The first five names are v1's.
type metrics struct {
	registry   *registry
	compliance *family
	gateErrors *sample
	gateBlocks sync.Map // by gate, *atomic.Uint64

	checkins   atomic.Uint64
	refused    *sample
	denied     *family
	handshakes *sample
	limited    *family
	enrolments *family
	polls      *family
	events     *family
	signedAt   *sample

	mu       sync.Mutex
	controls map[string]bool // names of compliance controls that are labels
}

// maxControls bounds the labels that reports can make.
const maxControls = 500

// control is the label of a compliance control: hosts choose the names.
func (m *metrics) control(id string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.controls[id] {
		if len(m.controls) >= maxControls || len(id) > 128 {
			return "other"
		}
		m.controls[id] = true
	}
	return id
}

func newMetrics(cfg *Config) *metrics {
	m := &metrics{registry: newRegistry(), controls: map[string]bool{}}
	m.compliance = m.counters("nixfleet_compliance_failure_events_total", "Compliance failures reported.", "control_id",
		"host")
	m.gateErrors = m.counter("nixfleet_runtime_gate_error_events_total", "Runtime gate errors reported.")
	m.registry.add(&family{
		name: "nixfleet_gate_block_total", help: "Check-ins that a gate held back.", kind: kindCounter,
		labels: []string{"gate"},
		collect: func(emit func(float64, ...string)) {
			m.gateBlocks.Range(func(gate, blocks any) bool {
				emit(float64(blocks.(*atomic.Uint64).Load()), gate.(string))
				return true
			})
		},
	})
	m.registry.add(&family{name: "nixfleet_checkins_total", help: "Check-ins.", kind: kindCounter,
		collect: func(emit func(float64, ...string)) { emit(float64(m.checkins.Load())) }})
	m.refused = m.counter("nixfleet_requests_refused_total", "Requests whose certificate was not accepted.")
	m.denied = m.counters("nixfleet_requests_denied_total", "Requests that were refused, by status.", "status")
	m.handshakes = m.counter("nixfleet_handshakes_failed_total", "TLS handshakes that failed.")
	m.limited = m.counters("nixfleet_requests_limited_total", "Requests answered 429, by the limit that was reached.",
		"limit")
	m.enrolments = m.counters("nixfleet_certificates_total", "Requests for certificates, by outcome.", "outcome")
	m.polls = m.counters("nixfleet_source_polls_total", "Polls of the release source, by outcome.", "outcome")
	m.events = m.counters("nixfleet_rollout_events_total", "Events of rollouts, by kind.", "kind")
	m.signedAt = m.gauges("nixfleet_release_signed_timestamp_seconds", "When the release in force was signed.").
		WithLabelValues()
	version, commit := cfg.version()
	m.gauges("nixfleet_cp_build_info", "The running build.", "version", "git_commit").WithLabelValues(version, commit).
		Set(1)
	return m
}

func (m *metrics) counter(name, help string) *sample {
	return m.counters(name, help).WithLabelValues()
}

func (m *metrics) counters(name, help string, labels ...string) *family {
	return m.registry.add(&family{name: name, help: help, kind: kindCounter, labels: labels})
}

func (m *metrics) gauges(name, help string, labels ...string) *family {
	return m.registry.add(&family{name: name, help: help, kind: kindGauge, labels: labels})
}

// watch adds what is counted when it is asked for.
func (m *metrics) watch(held *waiters, w *world, files *files) {
	m.registry.add(&family{name: "nixfleet_hosts", help: "Hosts, by rollout state.", kind: kindGauge,
		labels: []string{"state"}, collect: func(emit func(float64, ...string)) { countHosts(w, emit) }})
	m.registry.add(&family{name: "nixfleet_held_requests", help: "Check-ins held open.", kind: kindGauge,
		collect: func(emit func(float64, ...string)) { emit(float64(held.count())) }})
	m.registry.add(&family{name: "nixfleet_certificate_not_after_timestamp_seconds", kind: kindGauge,
		help: "When a certificate that the control plane uses ends.", labels: []string{"kind", "name"},
		collect: func(emit func(float64, ...string)) { certificateEnds(files, emit) }})
}

// countHosts counts hosts by state.
func countHosts(w *world, emit func(value float64, labels ...string)) {
	counts := map[string]int{}
	for _, v := range look(w, func(w *rollout.World, now time.Time) []rollout.HostView { return w.Hosts(now) }) {
		state := string(v.State)
		if state == "" {
			state = "none"
		}
		counts[state]++
	}
	for state, n := range counts {
		emit(float64(n), state)
	}
}

// watchRelease adds what alerts ask of the release in force, its rollouts and its source.
func (m *metrics) watchRelease(w *world, seen *lastSeen, release *inForce) {
	m.registry.add(&family{name: "nixfleet_channel_fresh_until_timestamp_seconds", kind: kindGauge,
		help: "Until when hosts of the channel accept the release in force.", labels: []string{"channel"},
		collect: func(emit func(float64, ...string)) {
			if snap := release.snapshot.Load(); snap != nil {
				for name, channel := range snap.rel.Fleet.Channels {
					emit(float64(freshUntil(snap.rel.SignedAt, channel.FreshnessWindow).Unix()), name)
				}
			}
		}})
	m.registry.add(&family{name: "nixfleet_channel_rollout", kind: kindGauge, labels: []string{"channel", "state"},
		help: "1 for the state of the newest rollout of a channel.",
		collect: func(emit func(float64, ...string)) {
			newest := map[string]bool{}
			for _, v := range look(w, (*rollout.World).Rollouts) {
				if !newest[v.Channel] {
					newest[v.Channel] = true
					emit(1, v.Channel, string(v.State))
				}
			}
		}})
	m.registry.add(&family{name: "nixfleet_agent_certificates_ending", kind: kindGauge,
		help:    "Hosts whose certificate ends and which did not renew it in three quarters of its life.",
		collect: func(emit func(float64, ...string)) { emit(float64(len(endingAgents(seen, time.Now())))) }})
	m.registry.add(&family{name: "nixfleet_source_failing_since_timestamp_seconds", kind: kindGauge,
		help: "Since when the source gives no release; absent while it does.",
		collect: func(emit func(float64, ...string)) {
			if at := release.failing.Load(); at > 0 {
				emit(float64(at))
			}
		}})
}
