package rollout

import "time"

// HostFacts are what only one host at a time is asked about.
type HostFacts struct {
	Since       time.Time   // of its state; zero when nothing has happened to it in its rollout
	Waves       int         // of its rollout
	Ref         string      // commit of the release that declares its closure
	OpenedAt    time.Time   // when its rollout was opened
	Attempt     int         // dispatches in this rollout
	Quarantine  *Quarantine // of its declared closure
	Deadline    time.Time   // by which its open dispatch has to be confirmed; zero without one
	FailingFrom *time.Time  // since when a probe fails
}

// Facts are the facts of a declared host; zero when it is in no rollout.
func (w *World) Facts(name string) (f HostFacts) {
	h := w.hosts.byName[name]
	if h == nil || h.run == nil {
		return f
	}
	f.Waves, f.Ref, f.OpenedAt = len(h.run.waves), h.run.ChannelRef, h.run.CreatedAt
	if r := h.rec; r != nil {
		f.Since, f.Attempt, f.FailingFrom = r.Since, r.Attempt, r.FailingSince
	}
	if q := w.rollouts.quarantines[quarantineKey{h.run.Channel, h.closure}]; q != nil {
		copied := q.Quarantine
		f.Quarantine = &copied
	}
	if h.lease != nil {
		f.Deadline = h.lease.ConfirmDeadline
	}
	return f
}
