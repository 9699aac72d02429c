package cp

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"nixfleet/roles/protocol"
	"nixfleet/roles/rollout"
)

// histogram counts durations by their length, in the text format of Prometheus.
type histogram struct {
	name, help string
	bounds     []float64 // seconds, ascending

	mu     sync.Mutex
	counts []uint64 // by bound, and beyond the last
	sum    float64
}

func newHistogram(r *registry, name, help string, bounds ...float64) *histogram {
	h := &histogram{name: name, help: help, bounds: bounds, counts: make([]uint64, len(bounds)+1)}
	r.addMetric(name, h)
	return h
}

func (h *histogram) observe(d time.Duration) {
	seconds := max(0, d.Seconds())
	at, _ := slices.BinarySearch(h.bounds, seconds)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.counts[at]++
	h.sum += seconds
}

// write writes the histogram, also one that has counted nothing.
func (h *histogram) write(out *bytes.Buffer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	fmt.Fprintf(out, "# HELP %s %s\n# TYPE %s histogram\n", h.name, escaped(h.help, false), h.name)
	total := uint64(0)
	for i, n := range h.counts {
		total += n
		bound := "+Inf"
		if i < len(h.bounds) {
			bound = strconv.FormatFloat(h.bounds[i], 'g', -1, 64)
		}
		fmt.Fprintf(out, "%s_bucket{le=\"%s\"} %d\n", h.name, bound, total)
	}
	fmt.Fprintf(out, "%s_sum %s\n%s_count %d\n", h.name, strconv.FormatFloat(h.sum, 'g', -1, 64), h.name, total)
}

// latencies are how long things take: a commit of the database, a rollout to reach a
// host, a host to confirm.
type latencies struct{ commit, dispatch, confirm *histogram }

func newLatencies(r *registry) *latencies {
	return &latencies{
		commit: newHistogram(r, "nixfleet_store_commit_seconds", "Time from a decision to its commit on disk.",
			.001, .005, .01, .05, .1, .5, 1, 5, 10, 30),
		dispatch: newHistogram(r, "nixfleet_dispatch_seconds", "Time from the opening of a rollout to a host's dispatch.",
			1, 10, 60, 300, 900, 3600, 4*3600, 24*3600, 7*24*3600),
		confirm: newHistogram(r, "nixfleet_confirm_seconds", "Time from a dispatch to its confirm.",
			5, 15, 30, 60, 120, 300, 600, 1800, 3600),
	}
}

// note measures what a change has dispatched and confirmed.
func (l *latencies) note(c rollout.Change, openedAt func(rolloutID string) (time.Time, bool)) {
	spoken := map[string]time.Time{} // hosts that something happened to in this change, and when
	for _, e := range c.Events {
		if e.Host == "" {
			continue
		}
		spoken[e.Host] = e.At.Time
		if e.Kind != protocol.LogDispatched {
			continue
		}
		if opened, ok := openedAt(e.RolloutID); ok {
			l.dispatch.observe(e.At.Sub(opened))
		}
	}
	for i := range c.Dispatches {
		d := &c.Dispatches[i]
		// The row of a confirmed dispatch changes again when its slot is free.
		if d.ConfirmedAt != nil && spoken[d.Host].Equal(*d.ConfirmedAt) {
			l.confirm.observe(d.ConfirmedAt.Sub(d.DispatchedAt))
		}
	}
}

// watchChannels adds how the hosts of each channel stand, and since when a channel is not
// as declared.
func (m *metrics) watchChannels(w *world, seen *lastSeen, release *inForce) {
	hosts := func() []rollout.HostView {
		views := look(w, func(w *rollout.World, now time.Time) []rollout.HostView { return w.Hosts(now) })
		return seen.present(views, time.Now())
	}
	m.registry.add(&family{name: "nixfleet_channel_hosts", kind: kindGauge, labels: []string{"channel", "standing"},
		help: "Hosts of a channel: failed, silent, moving, waiting or converged.",
		collect: func(emit func(float64, ...string)) {
			counts := map[[2]string]int{}
			for _, v := range hosts() {
				counts[[2]string{v.Channel, string(standing(&v))}]++
			}
			for key, n := range counts {
				emit(float64(n), key[0], key[1])
			}
		}})
	m.registry.add(&family{name: "nixfleet_channel_not_converged_since_timestamp_seconds", kind: kindGauge,
		help:   "When the rollout was opened that has not reached every host of the channel; absent once it has.",
		labels: []string{"channel"}, collect: func(emit func(float64, ...string)) {
			behind := map[string]string{} // a rollout by channel
			for _, v := range hosts() {
				if !v.Converged() && v.RolloutID != "" {
					behind[v.Channel] = v.RolloutID
				}
			}
			for channel, id := range behind {
				if v, ok := w.view(id); ok {
					emit(float64(v.CreatedAt.Unix()), channel)
				}
			}
		}})
	m.registry.add(&family{name: "nixfleet_source_success_timestamp_seconds", kind: kindGauge,
		help: "When the source last answered with a release that is in force.",
		collect: func(emit func(float64, ...string)) {
			if at := release.answered.Load(); at > 0 {
				emit(float64(at))
			}
		}})
}
