package agent

import (
	"context"
	"errors"
	"os"
	"strings"
	"time"

	"nixfleet/pki"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/protocol"
)

// act is a note of what root did.
type act struct {
	Kind   string        `json:"kind" shape:"R"` // of the report
	Text   string        `json:"text" shape:"R"`
	Hold   *holdState    `json:"hold" shape:"N"`   // that is in force from now
	Resume bool          `json:"resume" shape:"D"` // none is any more
	At     pki.Timestamp `json:"at" shape:"R"`
}

// actsLoop takes up notes while the agent runs, and notices another generation: both
// are for the control plane to hear of at once.
func (a *agent) actsLoop(ctx context.Context) {
	running := ""
	for {
		a.takeActs(ctx)
		if now, err := a.host.CurrentSystem(ctx); err == nil && now != running {
			if running != "" {
				a.tellChange()
			}
			running = now
		}
		if sleep(ctx, a.cfg.ActsPoll) != nil {
			return
		}
	}
}

func (a *agent) takeActs(ctx context.Context) {
	dir := journal.Directory(a.dir.Path(actsDir))
	entries, err := os.ReadDir(string(dir))
	if err != nil {
		return // nobody has done anything yet
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".json") {
			continue
		}
		done := journal.Optional[act](dir, e.Name(), func(err error) { a.log.Error().Err(err).Str("file", e.Name()).Msg("act not read") })
		if done == nil {
			continue
		}
		a.apply(ctx, done)
		if err := dir.Remove(e.Name()); err != nil {
			a.log.Error().Err(err).Msg("act not removed")
			return
		}
	}
}

func (a *agent) apply(ctx context.Context, done *act) {
	a.log.Warn().Str("act", done.Kind).Str("text", done.Text).Time("at", done.At.Time).Msg("root's act")
	switch {
	case done.Hold != nil:
		a.hold.set(done.Hold)
	case done.Resume:
		a.hold.set(nil)
		a.quarantine.set(nil)
		a.confirmed.set(journal.Optional[confirmed](a.dir, confirmedFile, func(error) {}))
	}
	a.other(done.Kind, done.Text)
	a.tellChange()
}

// follow ends a hold that was to last until something new is wanted.
func (a *agent) follow(ctx context.Context, intent string) {
	h := a.hold.get()
	if h == nil || h.Kind == holdPaused || h.Intent == "" || h.Intent == intent {
		return
	}
	a.log.Info().Str("hold", h.text()).Msg("hold ends: the fleet wants something new")
	if err := errors.Join(a.dir.Remove(journal.HoldFile), forgetOther(ctx, a.undoer)); err != nil {
		a.log.Error().Err(err).Msg("hold not ended")
		return
	}
	a.hold.set(nil)
	a.confirmed.set(journal.Optional[confirmed](a.dir, confirmedFile, func(error) {}))
	a.other(protocol.KindBreakGlass, "hold ended by a new release: "+h.text())
}

// respect notices that the host was switched without nixfleet since its last
// confirm, and leaves it so until resume or until something new is wanted.
func (a *agent) respect(running string) {
	c, h := a.confirmed.get(), a.hold.get()
	if c == nil || a.busy.get() {
		return
	}
	if running == c.Closure {
		if h != nil && h.Kind == holdByHand {
			a.hold.set(nil)
			if err := a.dir.Remove(journal.HoldFile); err != nil {
				a.log.Error().Err(err).Msg("hold not removed")
			}
		}
		return
	}
	if w := a.told.get(); h != nil || running == "" || w != nil && w.Closure() == running {
		return
	}
	if j, err := a.dir.Journal(); err != nil || j != nil {
		return
	}
	if _, err := os.Stat(a.dir.Path(journal.HoldFile)); err == nil {
		return // root is at it
	}
	a.holdByHand(running)
}

func (a *agent) holdByHand(running string) {
	h := &holdState{Kind: holdByHand, Closure: running, Intent: intentInForce(a.dir), At: pki.At(time.Now().Truncate(time.Millisecond))}
	if err := a.dir.Write(journal.HoldFile, h); err != nil {
		a.log.Error().Err(err).Msg("hold not written")
		return
	}
	a.hold.set(h)
	a.log.Warn().Str("running", running).Msg("switched by hand; left as it is")
	a.other(protocol.KindThirdClosure, running)
}
