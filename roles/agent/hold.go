package agent

import (
	"context"
	"errors"
	"os"
	"time"

	"nixfleet/pki"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/protocol"
)

// follow ends a hold that was to last until something new is wanted.
func (m *memory) follow(ctx context.Context, intent string) {
	h := m.hold.Load()
	if h == nil || h.Kind == holdPaused || h.Intent == "" || h.Intent == intent {
		return
	}
	m.log.Info().Str("hold", h.text()).Msg("hold lifted: a new release replaces what was held")
	if err := errors.Join(m.dir.Remove(journal.HoldFile), forgetOther(ctx, m.undoer)); err != nil {
		m.log.Error().Err(err).Msg("hold not lifted")
		return
	}
	m.hold.Store(nil)
	m.confirmed.Store(journal.Optional[confirmed](m.dir, confirmedFile, func(error) {}))
	m.reporter.other(protocol.KindBreakGlass, "a new release ended the hold: "+h.text())
}

// respect notices that the host was switched without nixfleet since its last
// confirm, and leaves it so until resume or until something new is wanted.
func (m *memory) respect(ctx context.Context, running string) {
	c, h := m.confirmed.Load(), m.hold.Load()
	if c == nil || m.work.busy.Load() {
		return
	}
	if running == c.Closure {
		if h != nil && h.Kind == holdByHand {
			m.hold.Store(nil)
			if err := m.dir.Remove(journal.HoldFile); err != nil {
				m.log.Error().Err(err).Msg("hold not removed")
			}
		}
		return
	}
	if w := m.told.Load(); h != nil || running == "" || w != nil && w.Closure() == running {
		return
	}
	if j, err := m.dir.Journal(); err != nil || j != nil {
		return
	}
	if _, err := os.Stat(m.dir.Path(journal.HoldFile)); err == nil {
		return // root is at it
	}
	if how, usedUp := m.fellBack(ctx, running); how != "" {
		m.fallBack(how, usedUp)
		return
	}
	m.holdByHand(running)
}

func (m *memory) holdByHand(running string) {
	h := &holdState{Kind: holdByHand, Closure: running, Intent: intentInForce(m.dir),
		At: pki.At(time.Now().Truncate(time.Millisecond))}
	if err := m.dir.Write(journal.HoldFile, h); err != nil {
		m.log.Error().Err(err).Msg("hold not written")
		return
	}
	m.hold.Store(h)
	m.log.Warn().Str("running", running).Msg("host was switched by hand; the agent leaves it as it is")
	m.reporter.other(protocol.KindThirdClosure, running)
}

// holdState is root's word on this host: paused, or held at a closure.
type holdState struct {
	Kind    string        `json:"kind" shape:"R"`
	Closure string        `json:"closure" shape:"D"`
	Intent  string        `json:"intent" shape:"D"` // that was in force when root spoke
	Reason  string        `json:"reason" shape:"D"`
	At      pki.Timestamp `json:"at" shape:"R"`
}

func (s *holdState) text() string {
	out := s.Kind
	if s.Closure != "" {
		out += " " + s.Closure
	}
	if s.Reason != "" {
		out += ": " + s.Reason
	}
	return out
}

// heldText says why this host does not follow by itself.
func (m *memory) heldText() string {
	if h := m.hold.Load(); h != nil {
		return h.text()
	}
	if q := m.quarantine.Load(); q != nil && q.Failures > 0 && !journal.Breaks("what failed is told") {
		return protocol.HeldQuarantined(q.Closure)
	}
	return ""
}
