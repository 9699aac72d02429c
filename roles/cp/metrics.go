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
	version, commit := cfg.version()
	m := &metrics{
		registry: prometheus.NewRegistry(), controls: map[string]bool{},
		compliance: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "nixfleet_compliance_failure_events_total", Help: "Compliance failures reported."}, []string{"control_id", "host"}),
		gateErrors: prometheus.NewCounter(prometheus.CounterOpts{Name: "nixfleet_runtime_gate_error_events_total", Help: "Runtime gate errors reported."}),
		gateBlocks: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "nixfleet_gate_block_total", Help: "Check-ins that a gate held back."}, []string{"gate"}),
		checkins:   prometheus.NewCounter(prometheus.CounterOpts{Name: "nixfleet_checkins_total", Help: "Check-ins."}),
		refused:    prometheus.NewCounter(prometheus.CounterOpts{Name: "nixfleet_requests_refused_total", Help: "Requests whose certificate was not accepted."}),
		limited:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: "nixfleet_requests_limited_total", Help: "Requests answered 429, by the limit that they met."}, []string{"limit"}),
		enrolments: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "nixfleet_certificates_total", Help: "Requests for certificates by outcome."}, []string{"outcome"}),
		polls:      prometheus.NewCounterVec(prometheus.CounterOpts{Name: "nixfleet_source_polls_total", Help: "Looks at the source of releases by outcome."}, []string{"outcome"}),
		events:     prometheus.NewCounterVec(prometheus.CounterOpts{Name: "nixfleet_rollout_events_total", Help: "Lines of the event log by kind."}, []string{"kind"}),
		signedAt:   prometheus.NewGauge(prometheus.GaugeOpts{Name: "nixfleet_release_signed_timestamp_seconds", Help: "When the release in force was signed."}),
	}
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "nixfleet_cp_build_info", Help: "The running build."}, []string{"version", "git_commit"})
	build.WithLabelValues(version, commit).Set(1)
	m.registry.MustRegister(m.compliance, m.gateErrors, m.gateBlocks, build, m.checkins, m.refused, m.limited, m.enrolments, m.polls, m.events, m.signedAt)
	return m
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

var hostStateDesc = prometheus.NewDesc("nixfleet_hosts", "Hosts by rollout state.", []string{"state"}, nil)

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
