package agent

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"nixfleet/nixops"
	"nixfleet/nixops/disk"
	"nixfleet/pki"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/agent/undo"
	"nixfleet/roles/agent/verify"
	"nixfleet/roles/protocol"
)

const (
	// fetchLimit is the downloading's own limit: it is not a part of the window.
	fetchLimit = 6 * time.Hour
	// minStoreFree and minBootFree are the least that must be left, in bytes.
	minStoreFree = 512 << 20
	minBootFree  = 16 << 20
	// minStateFree is the same for the state directory, whose journal has a reserve of its own.
	minStateFree = 16 << 20
)

// intake gets a closure into the store and looks whether it can be activated at all.
type intake struct {
	cfg      *Config
	log      zerolog.Logger
	host     nixops.Host
	dir      journal.Directory
	clock    *clock
	status   *statusFile
	memory   *memory
	reporter *reporter

	giveWay atomic.Pointer[func()] // ends the download that is going on
}

// localError is an error of this host, for which no release is to blame.
type localError struct {
	reason journal.Reason
	event  string // that reports it; empty: none
}

func (e *localError) Error() string { return e.reason.String() }

// bring gets the closure into the store, protected from collection, and looks
// whether it can be activated at all.
func (i *intake) bring(ctx context.Context, w *verify.Target, j *journal.Journal) error {
	if err := i.preflight(ctx, w); err != nil {
		return err
	}
	err := i.fetch(ctx, w.Closure())
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, nixops.ErrUnsigned), errors.Is(err, nixops.ErrMismatch):
		i.reporter.report(protocol.EventClosureSignatureMismatch, w.ChannelRef(),
			protocol.ClosureSignatureMismatch{ClosureHash: w.Closure(), StderrTail: tail(err.Error())})
		return &localError{journal.Because(protocol.CauseRealise, err.Error()), ""}
	case errors.Is(err, nixops.ErrNoSpace):
		return &localError{journal.Because(protocol.CauseNoSpace, err.Error()), protocol.EventRealiseFailed}
	case err != nil:
		return &localError{journal.Because(protocol.CauseRealise, err.Error()), protocol.EventRealiseFailed}
	}
	c, err := i.host.Inspect(ctx, w.Closure())
	if err != nil {
		return &localError{journal.Because(protocol.CauseRealise, err.Error()), protocol.EventRealiseFailed}
	}
	// Before anything is changed: an installer that finds no room fails when the release has proven itself.
	if space, err := i.host.Space(ctx, w.Closure()); err == nil && space.BootLacks > 0 {
		return &localError{journal.Because(protocol.CauseNoSpace, fmt.Sprintf(
			"%s lacks %d MiB for the kernel and the initrd of %s", space.BootLacking, space.BootLacks>>20+1, w.Closure())),
			protocol.EventRealiseFailed}
	}
	if !c.HasSwitch {
		return errors.New("the closure has no bin/switch-to-configuration")
	}
	if c.AgentPath == "" && !i.cfg.AgentOutside {
		return errors.New("the closure has no agent of its own, so nothing could prove it")
	}
	if c.TrustJSON != nil {
		if err := w.TrustAdmits(c.TrustJSON); err != nil {
			return err
		}
	} else if own, err := filepath.EvalSymlinks(i.cfg.TrustFile); err != nil {
		return &localError{journal.Because(protocol.CausePreflight, "trust file: "+err.Error()), protocol.EventRealiseFailed}
	} else if !i.cfg.AgentOutside && inStore(own) {
		// One that no closure brings stays as it is, and has verified this release.
		return errors.New("the closure has no trust file of its own, so it would refuse every later release")
	}
	return nil
}

const (
	// fetchTries is how often a download is taken up again that was cut off, before the target is
	// put off. Nix keeps the paths that it has, and does not take up the one that was cut off.
	fetchTries = 5
	fetchPause = 10 * time.Second // after the first; twice as long after each next one
)

// fetch gets a closure into the store. What the store had before is looked at as well where a
// power cut or a failure may have come in between.
func (i *intake) fetch(ctx context.Context, closure string) error {
	limited, cancel := context.WithTimeout(ctx, fetchLimit)
	defer cancel()
	var how []nixops.Fetch
	if i.suspect(limited, closure) {
		how = append(how, nixops.Verified)
	}
	for try := 1; ; try++ {
		copied := false
		err := i.host.Realise(limited, closure, func(line string) {
			copied = copied || strings.HasPrefix(line, "copying path") // and not only complaints about a cache
			i.status.waiting("downloading %s: %s", closure, line)
		}, how...)
		if errors.Is(err, nixops.ErrRepaired) {
			i.log.Warn().Err(err).Str("closure", closure).Msg("store repaired before the activation")
			err = nil
		}
		if err == nil {
			i.noteFetched(limited, closure)
			return nil
		}
		again := errors.Is(err, nixops.ErrUnreachable) || errors.Is(err, nixops.ErrTruncated)
		if !copied || try == fetchTries || !again {
			return err
		}
		pause := fetchPause << (try - 1)
		i.log.Warn().Err(err).Str("closure", closure).Dur("retry_in", pause).Msg("download cut off")
		i.status.waiting("the cache: the download of %s was cut off and is taken up again in %s", closure, pause)
		if err := nixops.Sleep(limited, pause); err != nil {
			return err
		}
	}
}

const fetchedFile = "fetched.json"

// fetched is the closure that was fetched last, and the boot in which it was.
type fetched struct {
	Closure string `json:"closure" shape:"R"`
	BootID  string `json:"bootId" shape:"R"`
}

// suspect reports whether a closure lies in the store already and was not fetched by this agent
// in this boot, or has failed here: its contents may be damaged.
func (i *intake) suspect(ctx context.Context, closure string) bool {
	if q := i.memory.quarantine.Load(); q != nil && q.Closure == closure {
		return true
	}
	if _, err := i.host.Inspect(ctx, closure); err != nil {
		return !errors.Is(err, nixops.ErrNotClosure)
	}
	last := journal.Optional[fetched](i.dir, fetchedFile, func(error) {})
	boot, err := i.host.BootID(ctx)
	return last == nil || err != nil || last.Closure != closure || last.BootID != boot
}

func (i *intake) noteFetched(ctx context.Context, closure string) {
	boot, err := i.host.BootID(ctx)
	if err == nil {
		err = i.dir.Write(fetchedFile, fetched{closure, boot})
	}
	if err != nil {
		i.log.Warn().Err(err).Msg("download not noted; it is looked at again")
	}
}

// repaired looks at the contents of a closure that has failed. It says what was damaged and
// has been fetched again, empty when nothing was or when it cannot be known.
func repaired(ctx context.Context, host nixops.Host, closure string) string {
	err := host.Realise(ctx, closure, nil, nixops.Verified)
	if errors.Is(err, nixops.ErrRepaired) {
		return err.Error()
	}
	return ""
}

// inStore reports whether a release may bring another file in its place.
func inStore(path string) bool { return strings.HasPrefix(path, "/nix/store/") }

// tail is the end of a text, cut where it can still be reported.
func tail(s string) string {
	return strings.ToValidUTF8(s[max(0, len(s)-nixops.MaxOutput):], "\uFFFD")
}

// preflight looks for what would make the activation fail half-way.
func (i *intake) preflight(ctx context.Context, w *verify.Target) error {
	// What a host confirms and attests carries its own clock's time, which may have
	// been set since the release was verified.
	past := i.clock.floor
	if signed := w.SignedAt().Add(-pki.ClockSlack); signed.After(past) {
		past = signed
	}
	if now := i.cfg.Clock(); past.Sub(now) > pki.ClockSlack {
		return &localError{
			journal.Because(protocol.CausePreflight,
				fmt.Sprintf("clock: this host's clock says %s, but it is at least %s", pki.At(now), pki.At(past))),
			protocol.EventRealiseFailed,
		}
	}
	space, err := i.host.Space(ctx, "")
	if err != nil {
		return &localError{journal.Because(protocol.CausePreflight, err.Error()), protocol.EventRealiseFailed}
	}
	state, err := disk.Free(string(i.dir))
	if err != nil {
		return &localError{journal.Because(protocol.CausePreflight, err.Error()), protocol.EventRealiseFailed}
	}
	switch {
	case space.BootReadOnly != "": // the kernel does that to a file system with errors
		return &localError{journal.Because(protocol.CausePreflight,
			space.BootReadOnly+" is mounted read-only, so the boot loader cannot be told"), protocol.EventRealiseFailed}
	case state < minStateFree:
		return &localError{journal.Because(protocol.CauseNoSpace,
			fmt.Sprintf("%d MiB are left in the state directory", state>>20)), protocol.EventRealiseFailed}
	case space.StoreFree < minStoreFree:
		return &localError{journal.Because(protocol.CauseNoSpace,
			fmt.Sprintf("%d MiB are left in the store", space.StoreFree>>20)), protocol.EventRealiseFailed}
	case space.BootFree < minBootFree:
		return &localError{journal.Because(protocol.CauseNoSpace,
			fmt.Sprintf("%d MiB are left in /boot", space.BootFree>>20)), protocol.EventRealiseFailed}
	}
	held, err := i.host.LockHeld(ctx)
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
func (i *intake) checkTarget(ctx context.Context, closure string) error {
	knows, err := i.host.SupportsCheck(ctx, closure)
	if err != nil {
		i.log.Warn().Err(err).Msg("switch script cannot be asked for its actions; its checks run with the switch")
		return nil
	}
	if !knows {
		return nil
	}
	i.status.waiting("the pre-switch checks of %s", closure)
	unit := journal.FreshUnit("nixfleet-check")
	exit, err := i.host.Switch(ctx, nixops.SwitchRequest{Closure: closure, Action: nixops.ActionCheck, Unit: unit})
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
	output, err := i.host.UnitOutput(ctx, unit)
	if err != nil {
		output = err.Error()
	}
	if exit.Meaning() == nixops.MeaningNotBegun { // the number of an error of this host
		why := fmt.Sprintf("check: %s: %s", exit, tail(output))
		return &localError{journal.Because(protocol.CausePreflight, why), protocol.EventRealiseFailed}
	}
	return fmt.Errorf("the target's pre-switch checks refuse it: %s: %s", exit, tail(output))
}

// postpone reports an error of this host, and has the target tried again later.
func (i *intake) postpone(w *verify.Target, local *localError) {
	if local.event != "" {
		i.reporter.report(local.event, w.ChannelRef(),
			protocol.RealiseFailed{ClosureHash: w.Closure(), Reason: local.reason.String()})
	}
	i.memory.postpone(w.Closure(), w.Intent(), w.ChannelRef(), local.reason)
}

// cannotBegin handles an activation that could not even be written down.
func (i *intake) cannotBegin(w *verify.Target, err error) {
	i.log.Error().Err(err).Msg("activation cannot begin")
	if errors.Is(err, journal.ErrMoved) || errors.Is(err, journal.ErrHeld) {
		return
	}
	reason := journal.Because(protocol.CausePreflight, err.Error())
	if disk.IsFull(err) {
		reason = journal.Because(protocol.CauseNoSpace, err.Error())
	}
	why := reason.String()
	i.memory.unbegun.Store(&why)
	i.status.waiting("%s", reason)
	i.postpone(w, &localError{reason, protocol.EventRealiseFailed})
}

// giveUp ends an activation that has changed nothing yet. A download that was
// cut off by our own end stays in the journal for the next agent.
func (i *intake) giveUp(ctx context.Context, w *verify.Target, err error) {
	if errors.Is(err, context.Canceled) {
		return
	}
	i.log.Error().Err(err).Str("closure", w.Closure()).Msg("activation failed before the switch")
	i.status.waiting("%v", err)
	if err := i.dir.End(journal.Fetching); err != nil {
		i.log.Error().Err(err).Msg("journal not closed")
		return
	}
	var local *localError
	if errors.As(err, &local) {
		i.postpone(w, local)
		return
	}
	if why := repaired(context.WithoutCancel(ctx), i.host, w.Closure()); why != "" {
		i.postpone(w, &localError{journal.Because(protocol.CausePreflight, why), protocol.EventRealiseFailed})
		return
	}
	text := err.Error()
	i.reporter.report(protocol.EventActivationFailed, w.ChannelRef(),
		protocol.ActivationFailed{Phase: string(protocol.CauseInspect), StderrTail: &text})
	i.memory.blame(w.Closure(), w.Intent(), w.ChannelRef(), journal.Reason{Text: text})
}
