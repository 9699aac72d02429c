package agent

import (
	"slices"
	"sync/atomic"

	"github.com/rs/zerolog"

	"nixfleet/roles/agent/journal"
	"nixfleet/roles/agent/verify"
)

const dispatchFile = "dispatch.json"

// dispatches knows which dispatch this host was given last. Events name it, so that the control plane can tell what
// happened in it from what happened in an earlier one and was reported late.
type dispatches struct {
	log  zerolog.Logger
	dir  journal.Directory
	last atomic.Pointer[dispatch]
}

// dispatch is what the control plane calls one dispatch. Rollouts are the references under which its intent was named
// here, oldest first: signing anew changes them, and what is under way keeps the one that it began with.
type dispatch struct {
	Name     string   `json:"name" shape:"R"`
	Intent   string   `json:"intent" shape:"R"`
	Rollouts []string `json:"rollouts" shape:"R"`
}

// maxReferences bounds the references that are kept of one intent.
const maxReferences = 16

// restore reads what the last agent noted. A document that cannot be believed is handed to warn.
func (d *dispatches) restore(warn func(error)) {
	d.last.Store(journal.Optional[dispatch](d.dir, dispatchFile, warn))
}

// note keeps the dispatch of a target that is about to be taken, or that renews what is under way. It is on disk before
// anything happens in it.
func (d *dispatches) note(w *verify.Target) {
	last := d.last.Load()
	next := &dispatch{Name: w.Dispatch(), Intent: w.Intent(), Rollouts: []string{}}
	if last != nil && last.Intent == next.Intent {
		next.Rollouts = slices.Clone(last.Rollouts)
	}
	if !slices.Contains(next.Rollouts, w.ChannelRef()) {
		next.Rollouts = append(next.Rollouts, w.ChannelRef())
		next.Rollouts = next.Rollouts[max(0, len(next.Rollouts)-maxReferences):]
	}
	if last != nil && last.Name == next.Name && slices.Equal(last.Rollouts, next.Rollouts) {
		return
	}
	if err := d.dir.Write(dispatchFile, next); err != nil {
		d.log.Error().Err(err).Msg("dispatch not written")
	}
	d.last.Store(next)
}

// of is the newest dispatch of a rollout; empty when none is known.
func (d *dispatches) of(rollout string) string {
	if last := d.last.Load(); last != nil && rollout != "" && slices.Contains(last.Rollouts, rollout) {
		return last.Name
	}
	return ""
}
