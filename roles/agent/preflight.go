package agent

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"nixfleet/nixops"
	"nixfleet/pki"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/agent/undo"
	"nixfleet/roles/agent/verify"
	"nixfleet/roles/protocol"
)

const (
	// fetchLimit is the downloading's own limit: it is no part of the window.
	fetchLimit = 6 * time.Hour
	// minStoreFree and minBootFree are the least that must be left, in bytes.
	minStoreFree = 512 << 20
	minBootFree  = 16 << 20
)

// localError is trouble of this host, for which no release is to blame.
type localError struct {
	reason journal.Reason
	event  string // that reports it; empty: none
}

func (e *localError) Error() string { return e.reason.String() }

// bring gets the closure into the store, protected from collection, and looks
// whether it can be activated at all.
func (a *agent) bring(ctx context.Context, w *verify.Target, j *journal.Journal) error {
	if err := a.preflight(ctx, w); err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, fetchLimit)
	defer cancel()
	err := a.host.Realise(limited, w.Closure(), func(line string) { a.waiting("downloading %s: %s", w.Closure(), line) })
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, nixops.ErrUnsigned), errors.Is(err, nixops.ErrMismatch):
		a.report(protocol.EventClosureSignatureMismatch, w.ChannelRef(), protocol.ClosureSignatureMismatch{ClosureHash: w.Closure(), StderrTail: tail(err.Error())})
		return &localError{journal.Because(protocol.CauseRealise, err.Error()), ""}
	case errors.Is(err, nixops.ErrNoSpace):
		return &localError{journal.Because(protocol.CauseNoSpace, err.Error()), protocol.EventRealiseFailed}
	case err != nil:
		return &localError{journal.Because(protocol.CauseRealise, err.Error()), protocol.EventRealiseFailed}
	}
	c, err := a.host.Inspect(ctx, w.Closure())
	if err != nil {
		return &localError{journal.Because(protocol.CauseRealise, err.Error()), protocol.EventRealiseFailed}
	}
	if !c.HasSwitch {
		return errors.New("the closure has no bin/switch-to-configuration")
	}
	if c.AgentPath == "" && !a.cfg.AgentOutside {
		return errors.New("the closure has no agent of its own, so that nobody could prove it")
	}
	if c.TrustJSON != nil {
		if err := w.TrustAdmits(c.TrustJSON); err != nil {
			return err
		}
	} else if own, err := filepath.EvalSymlinks(a.cfg.TrustFile); err != nil {
		return &localError{journal.Because(protocol.CausePreflight, "trust file: "+err.Error()), protocol.EventRealiseFailed}
	} else if !a.cfg.AgentOutside && inStore(own) {
		// One that no closure brings stays as it is, and has verified this release.
		return errors.New("the closure has no trust file of its own, so that it would believe no later release")
	}
	return nil
}

// inStore: a release may bring another file in its place.
func inStore(path string) bool { return strings.HasPrefix(path, "/nix/store/") }

// tail is the end of a text, cut where it can still be reported.
func tail(s string) string {
	return strings.ToValidUTF8(s[max(0, len(s)-nixops.MaxOutput):], "\uFFFD")
}

// preflight looks for what would make the activation fail half-way.
func (a *agent) preflight(ctx context.Context, w *verify.Target) error {
	// What a host confirms and attests carries its own clock's time, which may have
	// been set since the release was verified.
	past := a.floor
	if signed := w.SignedAt().Add(-pki.ClockSlack); signed.After(past) {
		past = signed
	}
	if now := a.cfg.Clock(); past.Sub(now) > pki.ClockSlack {
		return &localError{
			journal.Because(protocol.CausePreflight, fmt.Sprintf("clock: this host's clock says %s, but it is at least %s", pki.At(now), pki.At(past))),
			protocol.EventRealiseFailed,
		}
	}
	space, err := a.host.Space(ctx)
	if err != nil {
		return &localError{journal.Because(protocol.CausePreflight, err.Error()), protocol.EventRealiseFailed}
	}
	switch {
	case space.StoreFree < minStoreFree:
		return &localError{journal.Because(protocol.CauseNoSpace, fmt.Sprintf("%d MiB are left in the store", space.StoreFree>>20)), protocol.EventRealiseFailed}
	case space.BootFree < minBootFree:
		return &localError{journal.Because(protocol.CauseNoSpace, fmt.Sprintf("%d MiB are left in /boot", space.BootFree>>20)), protocol.EventRealiseFailed}
	}
	held, err := a.host.LockHeld(ctx)
	if err != nil {
		return &localError{journal.Because(protocol.CausePreflight, err.Error()), protocol.EventRealiseFailed}
	}
	if held {
		return &localError{undo.Locked, protocol.EventRealiseFailed}
	}
	return nil
}

// checkTarget runs the target's own pre-switch checks, where its script knows them
// by themselves. What it refuses now it would refuse in the switch.
func (a *agent) checkTarget(ctx context.Context, closure string) error {
	knows, err := a.host.SupportsCheck(ctx, closure)
	if err != nil {
		a.log.Warn().Err(err).Msg("switch script not asked for its actions; its checks run with the switch")
		return nil
	}
	if !knows {
		return nil
	}
	a.waiting("the pre-switch checks of %s", closure)
	unit := journal.FreshUnit("nixfleet-check")
	exit, err := a.host.Switch(ctx, nixops.SwitchRequest{Closure: closure, Action: nixops.ActionCheck, Unit: unit})
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, nixops.ErrLockHeld):
		return &localError{undo.Locked, protocol.EventRealiseFailed}
	case err != nil:
		return &localError{journal.Because(protocol.CausePreflight, "check: "+err.Error()), protocol.EventRealiseFailed}
	case exit.OK():
		return nil
	}
	output, err := a.host.UnitOutput(ctx, unit)
	if err != nil {
		output = err.Error()
	}
	if exit.Meaning() == nixops.MeaningNotBegun { // the number of an error of this host
		why := fmt.Sprintf("check: %s: %s", exit, tail(output))
		return &localError{journal.Because(protocol.CausePreflight, why), protocol.EventRealiseFailed}
	}
	return fmt.Errorf("the target's pre-switch checks refuse it: %s: %s", exit, tail(output))
}

// giveUp ends an activation that has changed nothing yet. A download that was
// cut off by our own end stays in the journal for the next agent.
func (a *agent) giveUp(w *verify.Target, err error) {
	if errors.Is(err, context.Canceled) {
		return
	}
	a.log.Error().Err(err).Str("closure", w.Closure()).Msg("activation given up")
	a.waiting("%v", err)
	if err := a.dir.End(journal.Fetching); err != nil {
		a.log.Error().Err(err).Msg("journal not closed")
		return
	}
	var local *localError
	if errors.As(err, &local) {
		if local.event != "" {
			a.report(local.event, w.ChannelRef(), protocol.RealiseFailed{ClosureHash: w.Closure(), Reason: local.reason.String()})
		}
		a.postpone(w.Closure(), w.Intent(), w.ChannelRef(), local.reason)
		return
	}
	text := err.Error()
	a.report(protocol.EventActivationFailed, w.ChannelRef(), protocol.ActivationFailed{Phase: string(protocol.CauseInspect), StderrTail: &text})
	a.punish(w.Closure(), w.Intent(), w.ChannelRef(), journal.Reason{Text: text}, true)
}
