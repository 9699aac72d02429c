package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"

	"nixfleet/nixops"
	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/agent/undo"
	"nixfleet/roles/agent/verify"
	"nixfleet/roles/command"
	"nixfleet/roles/protocol"
)

// hand is what root does on the host without the fleet. Each act changes the state files at
// once, whether an agent runs or not, and leaves a note, which the agent reports and takes
// into account within seconds.
type hand struct {
	*undo.Undoer
	out io.Writer
}

const (
	actsDir = "acts"
	// defaultActsPoll is how often a running agent looks for notes.
	defaultActsPoll = 2 * time.Second

	holdPaused    = "paused"
	holdActivated = "activated"
	// holdByHand: the host was switched without nixfleet, or booted into another
	// generation; that holds as an activate does.
	holdByHand = "switched by hand"

	activateHint = "nixfleet agent activate /nix/store/…-nixos-system-NAME"
)

// record leaves a note for the agent.
func (h hand) record(a act) error {
	dir, err := journal.Open(h.Dir.Path(actsDir))
	if err != nil {
		return err
	}
	a.At = pki.At(time.Now().Truncate(time.Millisecond))
	h.Log.Info().Str("act", a.Kind).Str("text", a.Text).Msg("root command recorded")
	return dir.Write(fmt.Sprintf("%020d.json", time.Now().UnixNano()), a)
}

// hold puts root's word in force and records it.
func (h hand) hold(state holdState) error {
	state.At = pki.At(time.Now().Truncate(time.Millisecond))
	if err := h.Dir.Write(journal.HoldFile, state); err != nil {
		return err
	}
	return h.record(act{Kind: protocol.KindBreakGlass, Text: state.text(), Hold: &state})
}

func (h hand) pause(reason string) error {
	if err := h.hold(holdState{Kind: holdPaused, Reason: reason}); err != nil {
		return err
	}
	j, err := h.Dir.Journal()
	if err == nil && j != nil && j.Step != journal.Staged {
		_, err = fmt.Fprintf(h.out, "this host takes no targets until nixfleet agent resume; the activation of %s goes on, "+
			"and so does its deadline\n", j.Closure)
		return err
	}
	_, err = fmt.Fprintln(h.out, "this host takes no targets until nixfleet agent resume")
	return err
}

// resume follows the fleet again, from whatever runs.
func (h hand) resume(ctx context.Context) error {
	if err := errors.Join(h.Dir.Remove(journal.HoldFile), h.Dir.Remove(quarantineFile),
		forgetOther(ctx, h.Undoer)); err != nil {
		return err
	}
	if err := h.record(act{Kind: protocol.KindBreakGlass, Text: "resumed", Resume: true}); err != nil {
		return err
	}
	_, err := fmt.Fprintln(h.out, "this host follows the fleet again")
	return err
}

// forgetOther forgets the confirmed generation when root has activated another one, so that
// this does not look like one more switch by hand.
func forgetOther(ctx context.Context, h *undo.Undoer) error {
	var c confirmed
	if err := h.Dir.Read(confirmedFile, &c); errors.Is(err, fs.ErrNotExist) || errors.Is(err, journal.ErrUnfit) {
		return nil
	} else if err != nil {
		return err
	}
	current, err := h.Host.CurrentSystem(ctx)
	if err != nil || h.Runs(ctx, current, c.Closure) {
		return err
	}
	return h.Dir.Remove(confirmedFile)
}

func (h hand) undo(ctx context.Context, reason string) error {
	j, _, err := h.Known(ctx, undo.Newest)
	if err != nil {
		return err
	}
	if j == nil || !slices.Contains(append(journal.Revertible, journal.Staged), j.Step) {
		if err := hasRun(string(h.Dir)); err != nil {
			return err
		}
		_, err := fmt.Fprintln(h.out, "there is nothing to undo")
		return err
	}
	if err := h.FromNoted(ctx, undo.Newest, append(journal.Revertible, journal.Staged),
		journal.Because(protocol.CauseOperatorUndo, reason)); err != nil {
		return err
	}
	_, err = fmt.Fprintf(h.out, "%s is undone; it is tried again unless this host is paused: nixfleet agent pause\n",
		j.Closure)
	return err
}

// rollBack returns to the generation before the confirmed one. It names that by path, so that
// a second time changes nothing [A6].
func (h hand) rollBack(ctx context.Context, reason string) error {
	var j journal.Journal
	if err := h.Dir.Read(committedFile, &j); err != nil {
		return &command.Error{Err: fmt.Errorf("no earlier generation is recorded: %w", err), Hint: activateHint}
	}
	return h.activate(ctx, j.Before.Current, reason)
}

// activate runs a closure for root, without a proof and without a deadline: root is there to
// see. It holds until resume, or until the fleet declares something new.
func (h hand) activate(ctx context.Context, path, reason string) error {
	closure := strings.TrimPrefix(strings.TrimSuffix(path, "/"), "/nix/store/")
	if !fleet.ValidClosure(closure) {
		return &command.Error{Err: fmt.Errorf("%q is not the store path of a system", path), Hint: activateHint}
	}
	if c, err := h.Host.Inspect(ctx, closure); err != nil {
		return &command.Error{Err: err, Hint: "nix-store --realise /nix/store/" + closure}
	} else if !c.HasSwitch {
		return &command.Error{Err: fmt.Errorf("%s has no bin/switch-to-configuration: %w", closure, nixops.ErrNotClosure),
			Hint: activateHint}
	}
	if err := h.From(ctx, []journal.Step{journal.Staged},
		journal.Because(protocol.CauseSuperseded, "root activates "+closure)); err != nil {
		return err
	}
	if err := h.byHand(ctx, holdState{Kind: holdActivated, Closure: closure, Intent: intentInForce(h.Dir),
		Reason: reason}); err != nil {
		return errors.Join(err, h.record(act{Kind: protocol.KindBreakGlass, Text: "activate " + closure + " failed: " +
			err.Error()}))
	}
	_, err := fmt.Fprintf(h.out, "this host runs %s until nixfleet agent resume, "+
		"or until the fleet declares something new\n",
		closure)
	return err
}

// intentInForce is the intent of the newest verified release.
func intentInForce(dir journal.Directory) string {
	var m verify.Mark
	if dir.Read(verify.MarkFile, &m) != nil {
		return ""
	}
	return m.Intent
}

// byHand switches while it keeps the agent from beginning anything. A switch that fails leaves
// the hold as it was.
func (h hand) byHand(ctx context.Context, state holdState) error {
	ctx = context.WithoutCancel(ctx)
	unlock, err := h.Dir.Lock()
	if err != nil {
		return err
	}
	defer unlock()
	j, err := h.Dir.Journal()
	if err != nil {
		return err
	}
	if j != nil && j.Step != journal.Undone {
		return &command.Error{Err: fmt.Errorf("an activation of %s is under way", j.Closure), Hint: "nixfleet agent undo"}
	}
	prior := journal.Optional[holdState](h.Dir, journal.HoldFile,
		func(err error) { h.Log.Warn().Err(err).Msg("hold not read") })
	state.At = pki.At(time.Now().Truncate(time.Millisecond))
	if err := h.Dir.Write(journal.HoldFile, state); err != nil {
		return err
	}
	if err := h.switchByHand(ctx, state.Closure); err != nil {
		if prior != nil {
			return errors.Join(err, h.Dir.Write(journal.HoldFile, prior))
		}
		return errors.Join(err, h.Dir.Remove(journal.HoldFile))
	}
	return h.hold(state)
}

func (h hand) switchByHand(ctx context.Context, closure string) error {
	if err := h.Host.AddRoot(ctx, "by-hand", closure); err != nil {
		return err
	}
	before, err := h.Host.Profile(ctx)
	if err == nil {
		err = h.Host.SetProfile(ctx, closure)
	}
	if err != nil {
		return err
	}
	exit, err := h.Host.Switch(ctx,
		nixops.SwitchRequest{Closure: closure, Action: nixops.ActionSwitch, Unit: journal.FreshUnit("nixfleet-by-hand")})
	switch exit.Meaning() {
	case nixops.MeaningDone, nixops.MeaningUnits: // root sees which units failed
	default:
		if err == nil {
			err = errors.New(exit.String())
		}
	}
	if err != nil {
		// The profile must tell the truth; the rest is up to root.
		if current, readErr := h.Host.CurrentSystem(ctx); readErr == nil && current != closure && before != "" {
			err = errors.Join(err, h.Host.SetProfile(ctx, before))
		}
		return &command.Error{Err: fmt.Errorf("switch to %s: %w", closure, err), Hint: "journalctl -b -u 'nixfleet-by-hand*'"}
	}
	return nil
}
