package agent

import (
	"errors"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"nixfleet/nixops"
	"nixfleet/nixops/fleet"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/command"
)

func previewCommand() *cli.Command {
	return &cli.Command{
		Name: "preview", Usage: "what a live switch to a generation would do to this host's units",
		ArgsUsage: "[PATH]",
		Description: "Without PATH: to the generation that waits for a reboot or, without one, to the newest that this " +
			"host was told.\nNothing is changed.\n\nExample:\n   nixfleet agent preview /nix/store/…-nixos-system-web-01-25.11",
		Flags:  local(command.JSONFlag()),
		Action: onHost(preview),
	}
}

const previewHint = "nixfleet agent preview /nix/store/…-nixos-system-NAME"

// previewed is the whole of `agent preview --json`.
type previewed struct {
	Closure string         `json:"closure"`
	Changes nixops.Changes `json:"changes"`
}

func preview(c *cli.Context, h hand) error {
	if c.NArg() > 1 {
		return &command.Error{Err: errors.New("preview takes one store path; options come before it"), Hint: previewHint}
	}
	closure := strings.TrimPrefix(strings.TrimSuffix(c.Args().First(), "/"), "/nix/store/")
	if closure == "" {
		closure = h.coming()
	}
	if !fleet.ValidClosure(closure) {
		return &command.Error{Err: fmt.Errorf("%q is not the store path of a system", closure), Hint: previewHint}
	}
	changes, err := nixops.Preview(c.Context, h.Host, closure, journal.FreshUnit("nixfleet-preview"))
	switch {
	case errors.Is(err, nixops.ErrCut):
		h.Log.Warn().Err(err).Msg("preview is not complete")
	case errors.Is(err, nixops.ErrLockHeld):
		return &command.Error{Err: err, Hint: "nixfleet agent status"}
	case errors.Is(err, nixops.ErrNotClosure):
		return &command.Error{Err: err, Hint: "nix-store --realise /nix/store/" + closure}
	case err != nil:
		return err
	}
	if c.Bool("json") {
		return command.Line(c, previewed{closure, changes})
	}
	return printChanges(c, closure, changes)
}

// coming is the closure that waits for a boot, else the newest that was told; empty without
// either.
func (h hand) coming() string {
	if j, err := h.Dir.Journal(); err == nil && j != nil {
		return j.Closure
	}
	var s status
	if h.Dir.Read(statusName, &s) != nil {
		return ""
	}
	return s.Told
}

func printChanges(c *cli.Context, closure string, changes nixops.Changes) error {
	rows := [][]string{{"closure", closure}}
	for _, part := range []struct {
		what  string
		units []string
	}{
		{"would stop", changes.Stopped}, {"would restart", changes.Restarted}, {"would reload", changes.Reloaded},
		{"would start", changes.Started}, {"would leave running", changes.Skipped},
	} {
		for i, unit := range part.units {
			what := part.what
			if i > 0 {
				what = ""
			}
			rows = append(rows, []string{what, command.Plain(unit)})
		}
	}
	if len(rows) == 1 {
		rows = append(rows, []string{"would change", "no units"})
	}
	return command.Table(c.App.Writer, rows)
}
