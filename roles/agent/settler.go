package agent

import (
	"context"
	"errors"
	"time"

	"github.com/rs/zerolog"

	"nixfleet/nixops"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/agent/undo"
	"nixfleet/roles/protocol"
)

// settler ends an activation that is undone: it reports it and closes its journal.
type settler struct {
	log      zerolog.Logger
	host     nixops.Host
	dir      journal.Directory
	undoer   *undo.Undoer
	status   *statusFile
	work     *work
	memory   *memory
	reporter *reporter
	// resume takes an activation on from its journal.
	resume func(context.Context, *journal.Journal)
}

const (
	committedFile = journal.CommittedFile
	recalledFile  = "recalled.json"
)

// disbelieve sets aside a journal that cannot be believed and leaves the host as
// it is: what was under way is not known.
func (s *settler) disbelieve(err error) {
	aside, asideErr := s.dir.SetAside(journal.File)
	s.log.Error().Err(err).AnErr("set_aside", asideErr).Str("kept_as",
		aside).Msg("journal set aside: it cannot be believed")
	s.reporter.other(protocol.KindJournalSetAside, err.Error())
	s.status.note(func(s *status) {
		s.Waiting = "the journal is damaged and is kept as " + aside
		s.Next = "compare what runs with the profile and the boot default, above"
	})
}

// settle reports an undo that is done and closes its journal.
func (s *settler) settle(ctx context.Context) {
	j, err := s.dir.Journal()
	if errors.Is(err, journal.ErrUnfit) && !s.work.busy.Load() {
		s.disbelieve(err)
		return
	}
	if err == nil && j != nil && j.Step == journal.Undoing && !s.work.busy.Load() &&
		time.Since(j.Since.Time) > undo.Again {
		s.work.start(ctx, func(ctx context.Context) { s.resume(ctx, j) })
		return
	}
	if err != nil || j == nil || j.Step != journal.Undone {
		return
	}
	s.repair(ctx, j)
	if j.Blame {
		s.reporter.report(protocol.EventActivationFailed, j.ChannelRef,
			protocol.ActivationFailed{Phase: j.Reason.String(), ExitCode: j.ExitCode, StderrTail: nonEmpty(j.Output)})
	}
	told := j.Reason.String()
	if j.UndoTrouble != "" {
		told += "; " + j.UndoTrouble
	}
	s.reporter.report(protocol.EventRollbackTriggered, j.ChannelRef, protocol.Reasoned{Reason: told})
	switch {
	case j.Recalled:
		s.memory.forgetRecalled(j)
	case j.Blame:
		s.memory.blame(j.Closure, j.Intent, j.ChannelRef, j.Reason)
	default:
		s.memory.excuse(j.Closure, j.Intent, j.ChannelRef, j.Reason)
	}
	if j.Reason.Cause == protocol.CauseThirdClosure && s.memory.hold.Load() == nil {
		s.memory.holdByHand(j.Reason.Text)
	}
	drop := []string{"staged"}
	if j.Blame {
		drop = append(drop, j.Closure)
	}
	for _, name := range drop {
		if err := s.host.RemoveRoot(ctx, name); err != nil {
			s.log.Warn().Err(err).Str("root", name).Msg("gc root not removed")
		}
	}
	s.status.note(func(s *status) {
		s.Waiting, s.Next = "this host is back on "+j.Before.Current+": "+told, "journalctl -u "+j.Units.Switch
	})
	if err := s.dir.End(journal.Undone); err != nil {
		s.log.Error().Err(err).Msg("journal not closed")
	}
}

// repair takes the blame from a release whose store paths were damaged here: it is tried again
// with what was fetched anew.
func (s *settler) repair(ctx context.Context, j *journal.Journal) {
	if !j.Blame || j.Recalled {
		return
	}
	limited, cancel := context.WithTimeout(ctx, repairLimit)
	defer cancel()
	s.status.waiting("the contents of %s to be compared with what was signed", j.Closure)
	if why := repaired(limited, s.host, j.Closure); why != "" {
		s.log.Warn().Str("closure", j.Closure).Str("what", why).Msg("store repaired; the release is not to blame")
		j.Blame, j.Reason = false, journal.Because(protocol.CausePreflight, j.Reason.String()+"; "+why)
	}
}

// repairLimit bounds the look at the contents of a closure that has failed. The loop waits for it, and systemd for
// the loop (stallLimit).
const repairLimit = 4 * time.Minute

func (s *settler) undo(ctx context.Context, reason journal.Reason) error {
	s.status.waiting("undoing: %s", reason)
	s.work.tellChange()
	if err := s.undoer.Undo(ctx, reason); err != nil {
		s.status.waiting("undoing: %s; to be tried again: %v", reason, err)
		// A held check-in would keep the next attempt waiting.
		time.AfterFunc(undo.Again+time.Second, s.work.tellChange)
		return err
	}
	s.settle(ctx)
	return nil
}
