package agent

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"nixfleet/nixops"
	"nixfleet/pki"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/agent/undo"
	"nixfleet/roles/agent/verify"
	"nixfleet/roles/protocol"
)

// activator takes a verified target from nothing to confirmed, or the host back. It leads
// through the journal's steps; each step has a part of its own.
type activator struct {
	log    zerolog.Logger
	host   nixops.Host
	dir    journal.Directory
	undoer *undo.Undoer
	status *statusFile
	work   *work
	memory *memory

	intake    *intake
	switcher  *switcher
	prover    *prover
	committer *committer
	stager    *stager
	settler   *settler
	sleeper   *sleeper

	missed *verify.Target // came while another closure was being fetched
}

// take begins an activation of a verified target, unless something speaks
// against it.
func (a *activator) take(ctx context.Context, w *verify.Target) {
	a.memory.told.Store(w)
	a.memory.reporter.given.note(w)
	a.status.note(func(s *status) { s.Told, s.Rollout = w.Closure(), w.RolloutID() })
	a.memory.follow(ctx, w.Intent())
	if why := a.memory.refuses(w); why != "" {
		a.log.Info().Str("closure", w.Closure()).Str("why", why).Msg("target not taken")
		a.status.note(func(s *status) { s.Waiting, s.Next = why, "nixfleet agent status; nixfleet agent resume" })
		a.keep(w)
		return
	}
	if a.work.busy.Load() {
		a.overtake(w)
		return
	}
	switch j, err := a.dir.Journal(); {
	case err != nil || j != nil && j.Step != journal.Staged:
		return
	case j != nil && j.Closure == w.Closure():
		a.stager.stagedAlready(j, w)
		return
	case j != nil:
		// A newer release takes the place of one that still waits for its boot.
		a.stager.supersedeStaged(ctx, j)
	}
	a.work.start(ctx, func(ctx context.Context) { a.activate(ctx, w) })
}

// overtake handles a target that comes while an activation is under way. A target of the same
// closure renews the lease. Another one is kept, since it may be sent only once, and ends a
// download that is still going on.
func (a *activator) overtake(w *verify.Target) {
	a.missed = nil
	if j, err := a.dir.Journal(); err != nil || j == nil || j.Closure == w.Closure() {
		return
	}
	a.missed = w
	if give := a.intake.giveWay.Load(); give != nil {
		(*give)()
	}
}

// keep keeps a target that came while this host waits by itself: it is not offered again
// before its lease is over.
func (a *activator) keep(w *verify.Target) {
	pause := a.memory.pause(w)
	if pause <= 0 || w.LateIn(pause) {
		return
	}
	a.missed = w
	time.AfterFunc(pause+time.Millisecond, a.work.tellChange) // a held check-in would keep it waiting
}

// takeMissed takes a target that came during an activation which is over by now.
func (a *activator) takeMissed(ctx context.Context) {
	w := a.missed
	if w == nil || a.work.busy.Load() {
		return
	}
	a.missed = nil
	if a.memory.told.Load() == w && !w.Late() {
		a.take(ctx, w)
	}
}

// idle reports whether no activation is under way, nor waits for a boot.
func (a *activator) idle() bool {
	j, err := a.dir.Journal()
	return err == nil && j == nil && !a.work.busy.Load()
}

// activate takes a target from nothing to confirmed, or the host back.
func (a *activator) activate(ctx context.Context, w *verify.Target) {
	j, err := a.newJournal(ctx, w)
	if err == nil {
		err = a.dir.Begin(j)
	}
	if err != nil {
		a.intake.cannotBegin(w, err)
		return
	}
	a.memory.unbegun.Store(nil)
	a.status.waiting("downloading %s", w.Closure())
	a.work.tellChange()
	fetch, giveWay := context.WithCancelCause(ctx)
	defer giveWay(nil)
	give := func() { giveWay(errOvertaken) }
	a.intake.giveWay.Store(&give)
	err = a.intake.bring(fetch, w, j)
	a.intake.giveWay.Store(nil)
	switch {
	case ctx.Err() == nil && errors.Is(context.Cause(fetch), errOvertaken):
		a.log.Info().Str("closure", w.Closure()).Err(errOvertaken).Msg("activation abandoned")
		if err := a.dir.End(journal.Fetching); err != nil {
			a.log.Error().Err(err).Msg("journal not closed")
		}
	case err != nil:
		a.intake.giveUp(ctx, w, err)
	default:
		a.advanceFrom(ctx, j)
	}
}

// errOvertaken means that another closure is wanted by now.
var errOvertaken = errors.New(overtaken.String())

// newJournal records where the host is, before anything is done to it.
func (a *activator) newJournal(ctx context.Context, w *verify.Target) (*journal.Journal, error) {
	j := &journal.Journal{
		Step: journal.Fetching, Closure: w.Closure(), RolloutID: w.RolloutID(), Intent: w.Intent(), Channel: w.Channel(),
		ChannelRef: w.ChannelRef(),
		Wave:       w.Wave(), Attempt: 1, Compliance: w.Compliance(),
		StartedAt:  pki.At(time.Now().Truncate(time.Millisecond)),
		WindowSecs: uint32(w.ConfirmWindow() / time.Second),
		Units: journal.NewUnits(strconv.FormatInt(time.Now().UnixMilli(),
			36)), Restarts: map[string]uint64{}, FailedBefore: []string{},
	}
	j.Since = j.StartedAt
	if q := a.memory.quarantine.Load(); q != nil && q.Closure == w.Closure() {
		j.Attempt += q.Failures + q.Unreachable + q.Refused
	}
	return j, a.switcher.recordBefore(ctx, j)
}

// advanceFrom carries an activation on from where its journal stands.
func (a *activator) advanceFrom(ctx context.Context, j *journal.Journal) {
	watch, stop := context.WithCancel(ctx)
	var watcher sync.WaitGroup
	defer watcher.Wait()
	defer stop()
	watcher.Go(func() { a.sleeper.watchSleep(watch) })
	for ctx.Err() == nil {
		next, err := a.stepOnce(ctx, j)
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, journal.ErrMoved) {
				return
			}
			a.log.Error().Err(err).Str("step", string(j.Step)).Msg("activation step failed, will retry")
			next = a.onceMore(ctx, j)
		}
		if next == nil {
			return
		}
		j = next
		a.work.tellChange()
	}
}

// stepAgain is how long a step waits that this host could not take.
const stepAgain = 5 * time.Second

// onceMore waits after trouble of this host, such as a systemd that does not answer
// while it is replaced, and gives the activation to go on with. The deadline bounds
// it. Nil: the activation is over, or is being undone, which has a pace of its own.
func (a *activator) onceMore(ctx context.Context, j *journal.Journal) *journal.Journal {
	for pause := time.Duration(0); ; pause = stepAgain {
		if err := nixops.Sleep(ctx, pause); err != nil {
			return nil
		}
		now, err := a.dir.Journal()
		switch {
		case errors.Is(err, journal.ErrUnfit) || err == nil && (now == nil || now.Units != j.Units):
			return nil
		case err == nil && slices.Contains([]journal.Step{journal.Staged, journal.Undoing, journal.Undone}, now.Step):
			return nil
		case err == nil && pause > 0:
			return now
		}
	}
}

// stepOnce takes one step. It returns nil when there is nothing more to do now.
func (a *activator) stepOnce(ctx context.Context, j *journal.Journal) (*journal.Journal, error) {
	switch j.Step {
	case journal.Fetching:
		return a.switcher.arm(ctx, j)
	case journal.Switching:
		return a.switcher.awaitSwitch(ctx, j)
	case journal.Checking:
		return a.prover.check(ctx, j)
	case journal.Proven, journal.Committing:
		return a.committer.commit(ctx, j)
	case journal.Committed:
		return nil, a.committer.confirm(ctx, j)
	case journal.Staging:
		return a.stager.stage(ctx)
	case journal.Arming, journal.Undoing:
		return nil, a.settler.undo(ctx, undo.Interrupted)
	}
	return nil, nil
}

// resume takes on what an earlier agent, or a power cut, left.
func (a *activator) resume(ctx context.Context) {
	j, err := a.dir.Journal()
	if err != nil {
		a.settler.disbelieve(err)
		return
	}
	if j == nil {
		return
	}
	a.log.Info().Str("step", string(j.Step)).Str("closure", j.Closure).Msg("activation found in the journal")
	boot, err := a.host.BootID(ctx)
	if err != nil {
		a.log.Error().Err(err).Msg("activation not resumed")
		return
	}
	current, err := a.host.CurrentSystem(ctx)
	if err != nil {
		a.log.Error().Err(err).Msg("activation not resumed")
		return
	}
	switch rebooted := boot != j.BootID; {
	case j.Step == journal.Staged && !rebooted:
	case j.Step == journal.Staged:
		a.work.start(ctx, func(ctx context.Context) { a.afterStagedBoot(ctx, j, current) })
	case j.Step == journal.Staging && rebooted && a.undoer.Runs(ctx, current, j.Closure):
		// Power was lost between choosing what boots once and writing it down.
		a.work.start(ctx, func(ctx context.Context) { a.afterStagedBoot(ctx, j, current) })
	case j.Step == journal.Staging && rebooted:
		if err := a.undoer.From(ctx, []journal.Step{journal.Staging}, undo.PowerLost); err != nil {
			a.log.Error().Err(err).Msg("undo failed")
		}
		a.settler.settle(ctx)
	case j.Step == journal.Fetching:
		// Nothing was changed; the closure is offered again or was superseded.
		if err := a.dir.End(journal.Fetching); err != nil {
			a.log.Error().Err(err).Msg("journal not closed")
		}
	case rebooted && slices.Contains([]journal.Step{journal.Arming, journal.Switching, journal.Checking, journal.Proven},
		j.Step),
		rebooted && j.Step == journal.Committing && !a.undoer.Runs(ctx, current, j.Closure):
		if err := a.settler.undo(ctx, undo.PowerLost); err != nil {
			a.log.Error().Err(err).Msg("undo failed")
		}
	case j.Step == journal.Undone:
	default:
		a.work.start(ctx, func(ctx context.Context) { a.advanceFrom(ctx, j) })
	}
}

// afterStagedBoot proves a staged generation that has been booted, or notes
// that another was.
func (a *activator) afterStagedBoot(ctx context.Context, j *journal.Journal, current string) {
	staged := []journal.Step{journal.Staging, journal.Staged}
	// A variable for one boot is gone before the kernel starts, so that only the kernel's own command line says what
	// was booted.
	if started, err := a.host.StartedBy(ctx); err == nil && started != "" {
		current = started
	}
	if !a.undoer.Runs(ctx, current, j.Closure) {
		if err := a.undoer.From(ctx, staged, journal.Because(protocol.CauseBoot,
			"fallback by the boot loader: "+current+" was booted instead")); err != nil {
			a.log.Error().Err(err).Msg("undo failed")
			return
		}
		a.settler.settle(ctx)
		return
	}
	j, err := a.stager.takeStagedBoot(ctx, j, staged)
	if err != nil {
		a.log.Error().Err(err).Msg("staged generation not resumed")
		return
	}
	a.advanceFrom(ctx, j)
}
