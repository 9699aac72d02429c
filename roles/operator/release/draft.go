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

	"nixfleet/nixops"
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
	e, err := r.evaluate(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the fleet's declaration: %w", err)
	}
	d.systems = e.systems
	if d.declaration, err = fleet.ParseDeclaration(e.declaration); err != nil {
		return nil, fmt.Errorf("read the fleet's declaration: %w", err)
	}
	if d.revocations, err = parseList("revocations", e.revocations); err != nil {
		return nil, err
	}
	if d.nonces, err = parseList("bootstrap-nonces", e.nonces); err != nil {
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

// evaluated is what a release is declared by, as JSON. A list that the fleet does not keep is nil.
type evaluated struct {
	declaration, revocations, nonces []byte
	systems                          []nixops.FlakeHost // nil when nothing is built
}

// evaluate reads the declaration and the lists from files, and evaluates the flake once for the rest.
func (r *releaser) evaluate(ctx context.Context) (evaluated, error) {
	var e evaluated
	src := r.cfg.Source
	var attrs []string   // of src.Flake
	var values []*[]byte // where they go
	for _, part := range []struct {
		list List
		into *[]byte
	}{
		{List{File: src.FleetFile, Attribute: src.Installable}, &e.declaration},
		{src.Revocations, &e.revocations}, {src.Nonces, &e.nonces},
	} {
		var err error
		switch {
		case part.list.File != "":
			if *part.into, err = command.ReadFile(part.list.File, pki.MaxDocument); err != nil {
				return e, err
			}
		case part.list.Attribute != "":
			ref, attr, whole := strings.Cut(part.list.Attribute, "#")
			switch {
			case !whole && part.into == &e.declaration:
				return e, command.Usage("", "--fleet-resolved-attr must be FLAKE#ATTRIBUTE")
			case whole && ref != src.Flake:
				if *part.into, err = r.evaluateElsewhere(ctx, part.list.Attribute); err != nil {
					return e, err
				}
				continue
			case !whole:
				attr = part.list.Attribute
			}
			attrs, values = append(attrs, attr), append(values, part.into)
		}
	}
	builds := src.FleetFile == "" && src.Closures == ""
	if len(attrs) == 0 && !builds {
		return e, nil
	}
	r.say("evaluating %s", src.Flake)
	defer r.waiting("evaluating "+src.Flake, nil)()
	declared, err := r.nix().Declare(ctx, src.Flake, attrs)
	if err != nil {
		return e, command.Hinted(err, "%s", withoutNix(err, "nix eval --json "+command.ShellWord(src.Installable)+
			" shows it by itself; --build-flake names the fleet's flake"))
	}
	for i, into := range values {
		*into = declared.Values[i]
	}
	if builds {
		e.systems = declared.Hosts
	}
	return e, nil
}

// evaluateElsewhere evaluates an attribute of another flake than the one that hosts are built from.
func (r *releaser) evaluateElsewhere(ctx context.Context, installable string) ([]byte, error) {
	r.say("evaluating %s", installable)
	defer r.waiting("evaluating "+installable, nil)()
	raw, err := r.nix().Eval(ctx, r.cfg.Source.Flake, installable)
	return raw, command.Hinted(err, "%s", withoutNix(err, "nix eval --json "+command.ShellWord(installable)+
		" shows it by itself"))
}

// parseList reads one of the lists; nil when the fleet keeps none.
func parseList(name string, raw []byte) (fleet.List, error) {
	if raw == nil {
		return nil, nil
	}
	list, err := fleet.ParseList(raw)
	if err != nil {
		return nil, command.Hinted(fmt.Errorf("read the list of %s: %w", name, err), "the attribute must yield the bare list")
	}
	return list, nil
}

// withoutNix is the hint of a machine that has no Nix, or whose Nix may not open the repository, or another one.
func withoutNix(err error, other string) string {
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
		return "name the directory of Nix with --nix-bin-dir, or pass what was made elsewhere: --fleet-file FILE " +
			"--closures FILE"
	}
	said := fmt.Sprint(err)
	_, rest, ok := strings.Cut(said, "repository path '")
	if ok && strings.Contains(rest, "is not owned by current user") {
		dir, _, _ := strings.Cut(rest, "'")
		return "git config --file ~/.gitconfig --add safe.directory " + command.ShellWord(dir) +
			" (Nix reads this file, and not the one that GIT_CONFIG_GLOBAL names)"
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
