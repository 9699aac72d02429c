package operator

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"

	"nixfleet/pki"
	"nixfleet/roles/command"
)

// demoTimeout ends a demonstration that got stuck.
const demoTimeout = 3 * time.Minute

func demoCommand(roles Roles) *cli.Command {
	return &cli.Command{
		Name:  "demo",
		Usage: "a whole fleet on this machine, from enrolment to recovery",
		Description: "Makes keys, a git forge and a fleet; starts the real control plane and one real agent per host over\n" +
			"mutual TLS on loopback; and tells what happens while it happens. The machines themselves are simulated,\n" +
			"or with --nix directories with a real Nix store each, whose systems are built, signed and fetched from a\n" +
			"cache. Nothing outside the demonstration's own directory is touched. Exit 0 only if every chapter happened.\n\n" +
			"Example:\n   nixfleet demo\n   nixfleet demo --hosts 12 --stay\n   nixfleet demo --nix",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "hosts", Value: 6, Usage: "`NUMBER` of machines, 3 to 100"},
			&cli.BoolFlag{Name: "nix", Usage: "hosts with real private Nix stores"},
			&cli.StringFlag{Name: "nix-bin-dir", EnvVars: []string{"NIXFLEET_NIX_BIN_DIR"}, Usage: "`DIR` of the Nix programs for --nix (default: on PATH)"},
			&cli.StringFlag{Name: "dir", Usage: "keep everything in `DIR` (default: a temporary directory, removed at the end)"},
			&cli.BoolFlag{Name: "stay", Usage: "go on after the last chapter until interrupted"},
			command.JSONFlag(),
		},
		Action: func(c *cli.Context) error { return demo(c, roles) },
	}
}

// chapter is one part of the story. It fails when what it tells did not happen.
type chapter struct {
	key, title string
	run        func(context.Context) error
}

func demo(c *cli.Context, roles Roles) error {
	n := c.Int("hosts")
	if n < 3 || n > 100 {
		return command.Usage("nixfleet demo --hosts 6", "--hosts must be from 3 to 100")
	}
	if roles.ControlPlane == nil || roles.Agent == nil {
		return errors.New("this build has no control plane and agent to demonstrate")
	}
	var nix *nixMachines
	if c.Bool("nix") {
		bin, version, err := findNix(c.Context, c.String("nix-bin-dir"))
		if err != nil {
			return err
		}
		nix = &nixMachines{bin: bin, version: version}
	}
	dir, temporary := c.String("dir"), false
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", "nixfleet-demo-"); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
		temporary = true
	} else if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		return command.Usage("give --dir a directory that does not exist yet", "%s is not empty", dir)
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(c.Context)
	view := newDemoView(c.App.ErrWriter)
	s := &story{roles: roles, dir: dir, view: view, hosts: n}
	s.machines = simulatedMachines{s}
	if nix != nil {
		nix.s, s.machines = s, nix
	}
	// The fleet is stopped before its directory goes.
	defer func() {
		stop()
		s.machines.stop()
		s.wait()
		if temporary {
			if err := removeStores(dir); err != nil {
				view.Say("%s is left over: %v", dir, err)
			}
		}
	}()

	happened, failed := map[string]bool{}, error(nil)
	limited, cancel := context.WithTimeout(ctx, demoTimeout)
	defer cancel()
	started := time.Now()
	for _, ch := range s.chapters() {
		happened[ch.key] = false
		if failed != nil {
			continue
		}
		view.Title(ch.title)
		if err := ch.run(limited); err != nil {
			failed = fmt.Errorf("%s: %w", ch.title, err)
			continue
		}
		happened[ch.key] = true
	}
	view.End()
	if failed == nil {
		view.Say("every chapter happened, in %s", time.Since(started).Round(100*time.Millisecond))
	}
	if c.Bool("json") {
		doc, err := pki.Marshal(happened)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(c.App.Writer, "%s\n", doc); err != nil {
			return err
		}
	}
	if failed != nil {
		if command.HintOf(failed) != "" || errors.Is(failed, context.Canceled) {
			return failed
		}
		return command.Hinted(failed, "nixfleet demo --dir DIR keeps the logs: DIR/cp.log and DIR/hosts/*/agent.log")
	}
	if c.Bool("stay") {
		view.Say("the fleet goes on until Ctrl-C; look around with\n\n  nixfleet status --config %s\n  nixfleet rollout list --config %s\n", s.config(), s.config())
		<-ctx.Done()
	}
	return nil
}
