package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"nixfleet/nixops"
	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/command"
	"nixfleet/roles/protocol"
)

// What root does on the host without the fleet. Each act changes the state files
// at once, whether an agent runs or not, and leaves a note, which the agent
// reports and takes into account within seconds.

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

// act is a note of what root did.
type act struct {
	Kind   string        `json:"kind" shape:"R"` // of the report
	Text   string        `json:"text" shape:"R"`
	Hold   *holdState    `json:"hold" shape:"N"`   // that is in force from now
	Resume bool          `json:"resume" shape:"D"` // none is any more
	At     pki.Timestamp `json:"at" shape:"R"`
}

// record leaves a note for the agent.
func (u *undoer) record(a act) error {
	dir, err := openDirectory(u.dir.path(actsDir))
	if err != nil {
		return err
	}
	a.At = pki.At(time.Now().Truncate(time.Millisecond))
	u.log.Info().Str("act", a.Kind).Str("text", a.Text).Msg("recorded")
	return dir.write(fmt.Sprintf("%020d.json", time.Now().UnixNano()), a)
}

// hold puts root's word in force and records it.
func (u *undoer) hold(h holdState) error {
	h.At = pki.At(time.Now().Truncate(time.Millisecond))
	if err := u.dir.write(holdFile, h); err != nil {
		return err
	}
	return u.record(act{Kind: protocol.KindBreakGlass, Text: h.text(), Hold: &h})
}

func (h *holdState) text() string {
	out := h.Kind
	if h.Closure != "" {
		out += " " + h.Closure
	}
	if h.Reason != "" {
		out += ": " + h.Reason
	}
	return out
}

func (u *undoer) pause(w io.Writer, reason string) error {
	if err := u.hold(holdState{Kind: holdPaused, Reason: reason}); err != nil {
		return err
	}
	j, err := u.dir.journal()
	if err == nil && j != nil && j.Step != stepStaged {
		_, err = fmt.Fprintf(w, "this host takes no targets until resume; the activation of %s goes on, and so does its deadline\n", j.Closure)
		return err
	}
	_, err = fmt.Fprintln(w, "this host takes no targets until resume")
	return err
}

// resume follows the fleet again, from whatever runs.
func (u *undoer) resume(ctx context.Context, w io.Writer) error {
	if err := errors.Join(u.dir.remove(holdFile), u.dir.remove(quarantineFile), u.forgetOther(ctx)); err != nil {
		return err
	}
	if err := u.record(act{Kind: protocol.KindBreakGlass, Text: "resumed", Resume: true}); err != nil {
		return err
	}
	_, err := fmt.Fprintln(w, "this host follows the fleet again")
	return err
}

// forgetOther forgets the confirmed generation when another runs by root's will:
// it must not look as if somebody had switched by hand once more.
func (u *undoer) forgetOther(ctx context.Context) error {
	var c confirmed
	if err := u.dir.read(confirmedFile, &c); errors.Is(err, fs.ErrNotExist) || errors.Is(err, errUnfit) {
		return nil
	} else if err != nil {
		return err
	}
	current, err := u.host.CurrentSystem(ctx)
	if err != nil || u.runs(ctx, current, c.Closure) {
		return err
	}
	return u.dir.remove(confirmedFile)
}

func (u *undoer) undoByHand(ctx context.Context, w io.Writer, reason string) error {
	j, err := u.dir.journal()
	if err != nil {
		return err
	}
	if j == nil || !slices.Contains(append(revertible, stepStaged), j.Step) {
		_, err := fmt.Fprintln(w, "there is nothing to undo")
		return err
	}
	if err := u.undoFrom(ctx, append(revertible, stepStaged), protocol.CauseOperatorUndo.With(reason), false); err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%s is undone; it is tried again unless this host is paused: nixfleet agent pause\n", j.Closure)
	return err
}

// rollBack returns to what ran before the confirmed generation. It names it by
// path, so that a second time changes nothing [A6].
func (u *undoer) rollBack(ctx context.Context, w io.Writer, reason string) error {
	var j journal
	if err := u.dir.read(committedFile, &j); err != nil {
		return &command.Error{Err: fmt.Errorf("no earlier generation is recorded: %w", err), Hint: activateHint}
	}
	return u.activate(ctx, w, j.Before.Current, reason)
}

// activate runs a closure by root's word, without a proof and without a deadline:
// root is there to see. It holds until resume or until the fleet wants something new.
func (u *undoer) activate(ctx context.Context, w io.Writer, path, reason string) error {
	closure := strings.TrimPrefix(strings.TrimSuffix(path, "/"), "/nix/store/")
	if !fleet.ValidClosure(closure) {
		return &command.Error{Err: fmt.Errorf("%q is no store path of a system", path), Hint: activateHint}
	}
	if c, err := u.host.Inspect(ctx, closure); err != nil {
		return &command.Error{Err: err, Hint: "nix-store --realise /nix/store/" + closure}
	} else if !c.HasSwitch {
		return &command.Error{Err: fmt.Errorf("%s has no bin/switch-to-configuration: %w", closure, nixops.ErrNotClosure), Hint: activateHint}
	}
	if err := u.undoFrom(ctx, []step{stepStaged}, protocol.CauseSuperseded.With("root activates "+closure), false); err != nil {
		return err
	}
	if err := u.byHand(ctx, holdState{Kind: holdActivated, Closure: closure, Intent: u.intentInForce(), Reason: reason}); err != nil {
		return errors.Join(err, u.record(act{Kind: protocol.KindBreakGlass, Text: "activate " + closure + " failed: " + err.Error()}))
	}
	_, err := fmt.Fprintf(w, "this host runs %s until resume, or until the fleet declares something new\n", closure)
	return err
}

// intentInForce is that of the newest verified release.
func (u *undoer) intentInForce() string {
	var m mark
	if u.dir.read(markFile, &m) != nil {
		return ""
	}
	return m.Intent
}

// byHand switches while it keeps the agent from beginning anything. A switch that
// fails leaves the hold as it was.
func (u *undoer) byHand(ctx context.Context, h holdState) error {
	ctx = context.WithoutCancel(ctx)
	unlock, err := u.dir.lock()
	if err != nil {
		return err
	}
	defer unlock()
	j, err := u.dir.journal()
	if err != nil {
		return err
	}
	if j != nil && j.Step != stepUndone {
		return &command.Error{Err: fmt.Errorf("an activation of %s is under way", j.Closure), Hint: "nixfleet agent undo"}
	}
	prior := optional[holdState](u.dir, holdFile, func(err error) { u.log.Warn().Err(err).Msg("hold not read") })
	h.At = pki.At(time.Now().Truncate(time.Millisecond))
	if err := u.dir.write(holdFile, h); err != nil {
		return err
	}
	if err := u.switchByHand(ctx, h.Closure); err != nil {
		if prior != nil {
			return errors.Join(err, u.dir.write(holdFile, prior))
		}
		return errors.Join(err, u.dir.remove(holdFile))
	}
	return u.hold(h)
}

func (u *undoer) switchByHand(ctx context.Context, closure string) error {
	if err := u.host.AddRoot(ctx, "by-hand", closure); err != nil {
		return err
	}
	before, err := u.host.Profile(ctx)
	if err == nil {
		err = u.host.SetProfile(ctx, closure)
	}
	if err != nil {
		return err
	}
	exit, err := u.host.Switch(ctx, nixops.SwitchRequest{Closure: closure, Action: nixops.ActionSwitch, Unit: fresh("nixfleet-by-hand")})
	switch exit.Meaning() {
	case nixops.MeaningDone, nixops.MeaningUnits: // root sees which units failed
	default:
		if err == nil {
			err = errors.New(exit.String())
		}
	}
	if err != nil {
		// Whatever the script did, it is root's to see to; the profile tells the truth.
		if current, readErr := u.host.CurrentSystem(ctx); readErr == nil && current != closure && before != "" {
			err = errors.Join(err, u.host.SetProfile(ctx, before))
		}
		return &command.Error{Err: fmt.Errorf("switch to %s: %w", closure, err), Hint: "journalctl -b -u 'nixfleet-by-hand*'"}
	}
	return nil
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
	dir := directory(a.dir.path(actsDir))
	entries, err := os.ReadDir(string(dir))
	if err != nil {
		return // nobody has done anything yet
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".json") {
			continue
		}
		done := optional[act](dir, e.Name(), func(err error) { a.log.Error().Err(err).Str("file", e.Name()).Msg("act not read") })
		if done == nil {
			continue
		}
		a.apply(ctx, done)
		if err := dir.remove(e.Name()); err != nil {
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
		a.confirmed.set(optional[confirmed](a.dir, confirmedFile, func(error) {}))
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
	if err := errors.Join(a.dir.remove(holdFile), a.undoer.forgetOther(ctx)); err != nil {
		a.log.Error().Err(err).Msg("hold not ended")
		return
	}
	a.hold.set(nil)
	a.confirmed.set(optional[confirmed](a.dir, confirmedFile, func(error) {}))
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
			if err := a.dir.remove(holdFile); err != nil {
				a.log.Error().Err(err).Msg("hold not removed")
			}
		}
		return
	}
	if w := a.told.get(); h != nil || running == "" || w != nil && w.closure == running {
		return
	}
	if j, err := a.dir.journal(); err != nil || j != nil {
		return
	}
	if _, err := os.Stat(a.dir.path(holdFile)); err == nil {
		return // root is at it
	}
	a.holdByHand(running)
}

func (a *agent) holdByHand(running string) {
	h := &holdState{Kind: holdByHand, Closure: running, Intent: a.undoer.intentInForce(), At: pki.At(time.Now().Truncate(time.Millisecond))}
	if err := a.dir.write(holdFile, h); err != nil {
		a.log.Error().Err(err).Msg("hold not written")
		return
	}
	a.hold.set(h)
	a.log.Warn().Str("running", running).Msg("switched by hand; left as it is")
	a.other(protocol.KindThirdClosure, running)
}
