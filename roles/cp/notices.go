package cp

import (
	"context"
	"slices"
	"time"

	"github.com/rs/zerolog"

	"nixfleet/nixops/fleet"
	"nixfleet/roles/cp/notify"
	"nixfleet/roles/protocol"
	"nixfleet/roles/rollout"
)

// noticeInterval is how often the control plane looks for what people want to be told; an event makes it look at once.
const noticeInterval = 15 * time.Second

// sourcePatience is how long a source may fail before people are told.
const sourcePatience = 10 * time.Minute

// notices finds what people want to be told, and tells them.
type notices struct {
	cfg      *NotifyConfig
	log      zerolog.Logger
	book     *notify.Book
	teller   *notify.Teller
	world    *world
	seen     *lastSeen
	snapshot *current
	release  *inForce
	door     *door
	started  time.Time
}

// newNotices opens the book; nil where nobody is told.
func newNotices(cfg *Config, counted *metrics) (*notices, error) {
	if !cfg.Notify.given() {
		return nil, nil
	}
	to, alerts, err := cfg.Notify.receivers()
	if err != nil {
		return nil, err
	}
	names := make([]string, len(to))
	for i, r := range to {
		names[i] = r.Name()
	}
	sent := counted.counters("nixfleet_notifications_total", "Deliveries of notifications, by receiver and outcome.",
		"receiver", "outcome")
	book, err := notify.OpenBook(cfg.StateDir, cfg.Notify.kinds(), names,
		func(receiver, outcome string) { sent.WithLabelValues(receiver, outcome).Inc() })
	if err != nil {
		cfg.Log.Error().Err(err).Msg("notifications of before not read; what holds is told again")
	}
	counted.registry.add(&family{name: "nixfleet_notifications_waiting", kind: kindGauge,
		help: "Notifications that wait for a receiver.", labels: []string{"receiver"},
		collect: func(emit func(float64, ...string)) {
			for receiver, n := range book.Waiting() {
				emit(float64(n), receiver)
			}
		}})
	return &notices{cfg: &cfg.Notify, log: cfg.Log, book: book, started: time.Now(),
		teller: &notify.Teller{Book: book, Receivers: to, Alerts: alerts, Log: cfg.Log}}, nil
}

// know tells where to look.
func (n *notices) know(w *world, seen *lastSeen, snapshot *current, release *inForce, d *door) {
	if n != nil {
		n.world, n.seen, n.snapshot, n.release, n.door = w, seen, snapshot, release, d
	}
}

// loop looks and tells until ctx ends.
func (n *notices) loop(ctx context.Context) {
	if n == nil {
		return
	}
	told := make(chan struct{})
	go func() { defer close(told); n.teller.Run(ctx) }()
	for {
		more := n.world.feed.wait()
		if n.snapshot.Load() != nil {
			if err := n.book.Look(n.holding(time.Now()), time.Now()); err != nil {
				n.log.Error().Err(err).Msg("notifications not stored")
			}
		}
		timer := time.NewTimer(noticeInterval)
		select {
		case <-ctx.Done():
			timer.Stop()
			<-told
			return
		case <-more:
			timer.Stop()
			// Events come in crowds: they are looked at together.
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
		case <-timer.C:
		}
	}
}

// holding is all that people want to know of and that holds now.
func (n *notices) holding(now time.Time) []notify.Condition {
	return slices.Concat(n.rollouts(), n.silent(now), n.certificates(now), n.stale(now), n.failing(now))
}

// rollouts are those that are halted or recalled, and the newest of a channel that has converged.
func (n *notices) rollouts() []notify.Condition {
	var out []notify.Condition
	newest := map[string]bool{}
	views := look(n.world, func(w *rollout.World, now time.Time) []rollout.RolloutView { return w.Rollouts(now) })
	for _, v := range views {
		first := !newest[v.Channel]
		newest[v.Channel] = true
		c := notify.Condition{Channel: v.Channel, Subject: v.Intent, Rollout: v.RolloutID, Reason: v.HaltReason}
		switch {
		case v.State == protocol.RolloutHalted:
			c.Kind = notify.KindHalted
		case v.State == protocol.RolloutReverting, v.State == protocol.RolloutReverted && first:
			c.Kind = notify.KindRecalled
		case v.State == protocol.RolloutConverged && first:
			c.Kind = notify.KindConverged
		default:
			continue
		}
		out = append(out, c)
	}
	return out
}

// perChannel makes a condition of each channel's hosts.
func perChannel(kind string, hosts map[string][]string) []notify.Condition {
	var out []notify.Condition
	for channel, names := range hosts {
		slices.Sort(names)
		out = append(out, notify.Condition{Kind: kind, Channel: channel, Hosts: names})
	}
	return out
}

// silent are the hosts that have not been heard of for a while. After a restart a host counts from then on, if it is
// known to have run; one that people know of as silent stays so until it speaks.
func (n *notices) silent(now time.Time) []notify.Condition {
	hosts := map[string][]string{}
	views := look(n.world, func(w *rollout.World, now time.Time) []rollout.HostView { return w.Hosts(now) })
	for _, v := range n.seen.present(views, now) {
		if v.Online || v.Channel == "" {
			continue
		}
		since, ran := n.started, v.State != "" && v.State != protocol.HostQueued && v.State != protocol.HostSkipped
		if v.LastSeen != nil {
			since, ran = *v.LastSeen, true
		}
		if ran && now.Sub(since) >= n.cfg.SilentAfter || n.book.Holds(notify.KindHostSilent, v.Channel, v.Host) {
			hosts[v.Channel] = append(hosts[v.Channel], v.Host)
		}
	}
	return perChannel(notify.KindHostSilent, hosts)
}

// ending reports whether a certificate ends so soon that a person should act: an agent has had half of its life to
// renew it by then, and of all others people are told a month ahead.
func ending(c *protocol.CertificateView, now time.Time) bool {
	left, life := c.NotAfter.Sub(now), c.NotAfter.Sub(c.NotBefore.Time)
	if c.Kind == protocol.CertificateAgent {
		return left <= life/4
	}
	return left <= min(protocol.CertificateEndsSoon, life/3)
}

// endingAgents are the hosts whose certificate ends and is not renewed.
func endingAgents(seen *lastSeen, now time.Time) []string {
	var out []string
	for _, c := range seen.certificates() {
		if ending(&c, now) {
			out = append(out, c.Name)
		}
	}
	return out
}

// certificates are those that end soon.
func (n *notices) certificates(now time.Time) []notify.Condition {
	var out []notify.Condition
	named := map[string]bool{}
	for _, c := range append(n.door.files.own(), n.door.operators.all()...) {
		subject := c.Kind + " " + printed(c.Name)
		if ending(&c, now) && !named[subject] {
			named[subject] = true
			out = append(out, notify.Condition{Kind: notify.KindCertificate, Subject: subject,
				Reason: "ends at " + c.NotAfter.UTC().Format(time.RFC3339)})
		}
	}
	fl, hosts := n.snapshot.Load().rel.Fleet, map[string][]string{}
	for _, name := range endingAgents(n.seen, now) {
		if h := fl.Hosts[name]; h != nil {
			hosts[h.Channel] = append(hosts[h.Channel], name)
		}
	}
	return append(out, perChannel(notify.KindCertificate, hosts)...)
}

// freshUntil is when hosts stop to accept a release; window is in minutes.
func freshUntil(signed time.Time, window uint32) time.Time { return signed.Add(fleet.Minutes(window)) }

// stale are the channels whose release hosts do not accept any more.
func (n *notices) stale(now time.Time) []notify.Condition {
	var out []notify.Condition
	rel := n.snapshot.Load().rel
	for name, channel := range rel.Fleet.Channels {
		if end := freshUntil(rel.SignedAt, channel.FreshnessWindow); now.After(end) {
			out = append(out, notify.Condition{Kind: notify.KindStale, Channel: name,
				Reason: "hosts accept it until " + end.UTC().Format(time.RFC3339)})
		}
	}
	return out
}

// failing says that the source gives no release.
func (n *notices) failing(now time.Time) []notify.Condition {
	since := n.release.failing.Load()
	if since == 0 || now.Sub(time.Unix(since, 0)) < sourcePatience {
		return nil
	}
	return []notify.Condition{{Kind: notify.KindSource,
		Reason: "since " + time.Unix(since, 0).UTC().Format(time.RFC3339)}}
}
