package cp

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"nixfleet/roles/rollout"
)

// metrics are for Prometheus. The first five names are v1's.
type metrics struct {
	registry   *prometheus.Registry
	compliance *prometheus.CounterVec
	gateErrors prometheus.Counter
	gateBlocks *prometheus.CounterVec

	checkins   prometheus.Counter
	refused    prometheus.Counter
	denied     *prometheus.CounterVec
	handshakes prometheus.Counter
	limited    *prometheus.CounterVec
	enrolments *prometheus.CounterVec
	polls      *prometheus.CounterVec
	events     *prometheus.CounterVec
	signedAt   prometheus.Gauge

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
	m := &metrics{registry: prometheus.NewRegistry(), controls: map[string]bool{}}
	m.compliance = m.counters("nixfleet_compliance_failure_events_total", "Compliance failures reported.", "control_id",
		"host")
	m.gateErrors = m.counter("nixfleet_runtime_gate_error_events_total", "Runtime gate errors reported.")
	m.gateBlocks = m.counters("nixfleet_gate_block_total", "Check-ins that a gate held back.", "gate")
	m.checkins = m.counter("nixfleet_checkins_total", "Check-ins.")
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

func (m *metrics) counter(name, help string) prometheus.Counter {
	return m.counters(name, help).WithLabelValues()
}

func (m *metrics) counters(name, help string, labels ...string) *prometheus.CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	m.registry.MustRegister(c)
	return c
}

func (m *metrics) gauges(name, help string, labels ...string) *prometheus.GaugeVec {
	g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
	m.registry.MustRegister(g)
	return g
}

// watch adds what is counted when it is asked for.
func (m *metrics) watch(held *waiters, w *world) {
	m.registry.MustRegister(hostStates{w}, prometheus.NewGaugeFunc(
		prometheus.GaugeOpts{Name: "nixfleet_held_requests", Help: "Check-ins held open."},
		func() float64 { return float64(held.count()) },
	))
}

// hostStates counts hosts by state when they are asked for.
type hostStates struct{ w *world }

var hostStateDesc = prometheus.NewDesc("nixfleet_hosts", "Hosts, by rollout state.", []string{"state"}, nil)

// Describe names the metric.
func (hostStates) Describe(ch chan<- *prometheus.Desc) { ch <- hostStateDesc }

// Collect counts.
func (h hostStates) Collect(ch chan<- prometheus.Metric) {
	counts := map[string]int{}
	for _, v := range look(h.w, func(w *rollout.World, now time.Time) []rollout.HostView { return w.Hosts(now) }) {
		state := string(v.State)
		if state == "" {
			state = "none"
		}
		counts[state]++
	}
	for state, n := range counts {
		ch <- prometheus.MustNewConstMetric(hostStateDesc, prometheus.GaugeValue, float64(n), state)
	}
}
