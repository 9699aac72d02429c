package release

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"nixfleet/nixops/fleet"
	"nixfleet/pki"
	"nixfleet/roles/command"
)

// listMax is how many hosts or files a line names.
const listMax = 40

// declare makes a draft of what the flake declares.
func (r *releaser) declare(ctx context.Context) (*draft, error) {
	d := &draft{}
	var err error
	if d.ciCommit, err = r.commitOf(ctx, r.cfg.Source.Flake); err != nil {
		return nil, err
	}
	if d.ciCommit != nil && (r.cfg.Source.FleetFile == "" || r.cfg.Source.Closures == "") {
		if err := r.warnOfChanges(ctx, *d.ciCommit); err != nil {
			return nil, err
		}
	}
	if d.declaration, err = r.evaluate(ctx); err != nil {
		return nil, fmt.Errorf("read the fleet's declaration: %w", err)
	}
	if d.revocations, err = r.list(ctx, "revocations", r.cfg.Source.Revocations); err != nil {
		return nil, err
	}
	if d.nonces, err = r.list(ctx, "bootstrap-nonces", r.cfg.Source.Nonces); err != nil {
		return nil, err
	}
	return d, r.adjust(d)
}

// warnOfChanges names the files that Nix builds from although no commit has them.
func (r *releaser) warnOfChanges(ctx context.Context, commit string) error {
	changed, err := uncommitted(ctx, r.cfg.Source.Flake, r.cfg.Dir)
	if err != nil {
		return fmt.Errorf("look for files that are not committed: %w", err)
	}
	if len(changed) == 0 {
		return nil
	}
	differ := "differ"
	if len(changed) == 1 {
		differ = "differs"
	}
	r.say("warning: %s %s from commit %s, which the release will name: %s", command.Plural(len(changed), "file"), differ,
		command.Short(commit), strings.Join(changed[:min(len(changed), listMax)], ", "))
	return nil
}

// evaluate reads the declaration, from Nix or from a file.
func (r *releaser) evaluate(ctx context.Context) (*fleet.Declaration, error) {
	raw, err := r.source(r.cfg.Source.FleetFile, func() ([]byte, error) {
		ref, attr, ok := strings.Cut(r.cfg.Source.Installable, "#")
		if !ok {
			return nil, command.Usage("", "--fleet-resolved-attr must be FLAKE#ATTRIBUTE")
		}
		r.say("evaluating %s#%s", ref, attr)
		raw, err := r.nix().Eval(ctx, ref, attr)
		return raw, command.Hinted(err, "%s", withoutNix(err, "nix eval --json "+command.ShellWord(ref+"#"+attr)+
			" shows it by itself; --build-flake names the fleet's flake"))
	})
	if err != nil {
		return nil, err
	}
	return fleet.ParseDeclaration(raw)
}

// list reads one of the lists; nil when the fleet keeps none.
func (r *releaser) list(ctx context.Context, name string, from List) (fleet.List, error) {
	if from.Attribute == "" && from.File == "" {
		return nil, nil
	}
	raw, err := r.source(from.File, func() ([]byte, error) {
		return r.nix().Eval(ctx, r.cfg.Source.Flake, from.Attribute)
	})
	if err != nil {
		return nil, fmt.Errorf("read the list of %s: %w", name, err)
	}
	list, err := fleet.ParseList(raw)
	if err != nil {
		return nil, command.Hinted(fmt.Errorf("read the list of %s: %w", name, err), "the attribute must yield the bare list")
	}
	return list, nil
}

// source reads a file, or asks Nix when none is named.
func (r *releaser) source(file string, eval func() ([]byte, error)) ([]byte, error) {
	if file != "" {
		return command.ReadFile(file, pki.MaxDocument)
	}
	return eval()
}

// withoutNix is the hint of a machine that has no Nix, or another one.
func withoutNix(err error, other string) string {
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
		return "name the directory of Nix with --nix-bin-dir, or pass what was made elsewhere: --fleet-file FILE " +
			"--closures FILE"
	}
	return other
}

// adjust brings a declaration into the form that is released.
func (r *releaser) adjust(d *draft) error {
	var err error
	if warning := d.dropUnknown(); warning != "" {
		r.say("%s", warning)
	}
	if d.expired, err = d.declaration.DropExpired(time.Now()); err != nil {
		return pinError(err)
	}
	for _, name := range d.expired {
		r.say("the pin of %s has expired: it follows its channel again", name)
	}
	for _, s := range d.declaration.KeepOwnHosts() {
		r.say("wave %d of %s: %s is on channel %s and is left out", s.Wave, s.Channel, s.Host, s.Own)
	}
	d.declaration.RoundSoaks()
	lowered, err := d.declaration.LowerPolicies()
	for _, l := range lowered {
		r.say("wave %d of policy %s: its selector is signed as a list of %s, since a signed document has neither `and` "+
			"nor `not`",
			l.Wave, l.Policy, command.Plural(l.Hosts, "host"))
	}
	return err
}

// dropUnknown leaves out what this nixfleet does not know: it would be signed, and nobody would read it. The warning
// that names it is empty where there was nothing.
func (d *draft) dropUnknown() string {
	dropped := slices.Concat(d.declaration.DropUnknown(),
		fleet.DropUnknown[fleet.Revocation](d.revocations, "revocations"),
		fleet.DropUnknown[fleet.BootstrapNonce](d.nonces, "bootstrapNonces"))
	if len(dropped) == 0 {
		return ""
	}
	more := ""
	if len(dropped) > listMax {
		more = fmt.Sprintf(" and %d more", len(dropped)-listMax)
	}
	return "warning: left out of the release, since this nixfleet does not know them: " +
		command.Plain(strings.Join(dropped[:min(len(dropped), listMax)], ", ")) + more
}

func pinError(err error) error {
	if errors.Is(err, fleet.ErrPin) {
		return command.Hinted(err, "git rev-parse REV in the fleet's repository prints it")
	}
	return err
}

// check refuses a declaration that would do harm, and prints what is odd in others.
func (r *releaser) check(d *draft) error {
	f, err := d.declaration.Fleet()
	if err != nil {
		return fmt.Errorf("the fleet's declaration: %w", err)
	}
	var refused []string
	for _, p := range fleet.Check(f) {
		if p.Fatal {
			refused = append(refused, p.String())
			continue
		}
		r.say("warning: %s", p)
	}
	if len(refused) == 0 {
		return nil
	}
	return command.Hinted(fmt.Errorf("the fleet's declaration has %d problems:\n  - %s", len(refused),
		strings.Join(refused, "\n  - ")),
		"correct the declaration and release again")
}
