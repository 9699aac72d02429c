// Package demo shows a whole fleet on one machine: real keys, git, TLS, control plane and agents; machines that are
// simulated, or directories with a real Nix store each.
//
// It promises that nothing outside its own directory is written, that the operator's own configuration and variables
// are not read, and that a chapter is told only when it happened.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"

	"nixfleet/roles/command"
)

// timeout ends a story that got stuck. It is a moment for the story alone: control
// plane and agents live until the demonstration ends.
const timeout = 3 * time.Minute

// tempPrefix begins the name of a demonstration's temporary directory.
const tempPrefix = "nixfleet-demo-"

// Role runs one command line of a role: the words after the role's name, or all words of an operator's verb. It reads
// no environment variables.
type Role func(ctx context.Context, args []string, stdout, stderr io.Writer) error

// Roles are what main hands over, because the roles do not import each other.
type Roles struct{ ControlPlane, Agent, Operator Role }

// Command is `nixfleet demo`.
func Command(roles Roles) *cli.Command {
	return &cli.Command{
		Name:  "demo",
		Usage: "a whole fleet on this machine, from enrolment to recovery",
		Description: "Makes keys, a git forge and a fleet; starts the real control plane and one real agent per host over\n" +
			"mutual TLS on loopback; and tells what happens while it happens. The machines themselves are simulated,\n" +
			"or with --nix directories with a real Nix store each, whose systems are built, signed and fetched from a\n" +
			"cache. Nothing outside the demonstration's own directory is touched. Exit 0 only if every chapter happened.\n" +
			"With --stay the fleet goes on after the story, with a halted rollout to look at, until Ctrl-C.\n\n" +
			"Example:\n   nixfleet demo\n   nixfleet demo --hosts 12 --stay\n   nixfleet demo push good\n" +
			"   nixfleet demo --nix",
		Flags: []cli.Flag{
			&cli.IntFlag{Name: "hosts", Value: 6, Usage: "`NUMBER` of machines, 3 to 100"},
			&cli.BoolFlag{Name: "nix", Usage: "hosts with real private Nix stores"},
			&cli.StringFlag{
				Name: "nix-bin-dir", EnvVars: []string{"NIXFLEET_NIX_BIN_DIR"},
				Usage: "`DIR` of the Nix programs for --nix (default: on PATH)",
			},
			&cli.StringFlag{Name: "dir", Usage: "keep everything in `DIR` (default: a temporary directory, removed at the end)"},
			&cli.BoolFlag{Name: "stay", Usage: "go on after the last chapter until interrupted"},
			command.JSONFlag(),
		},
		Subcommands: []*cli.Command{pushCommand()},
		Action:      func(c *cli.Context) error { return demonstrate(c, roles) },
	}
}

// chapter is one part of the story. It fails when what it tells did not happen.
type chapter struct {
	key, title string
	run        func(context.Context) error
}

func demonstrate(c *cli.Context, roles Roles) error {
	if n := c.Int("hosts"); n < 3 || n > 100 {
		return command.Usage("nixfleet demo --hosts 6", "--hosts must be from 3 to 100")
	}
	if roles.ControlPlane == nil || roles.Agent == nil || roles.Operator == nil {
		return errors.New("this build has no control plane and agent to demonstrate")
	}
	ctx, stop := context.WithCancel(c.Context)
	// A terminal that is closed ends the demonstration as Ctrl-C does, so that its keys do not stay behind.
	hangups, deaf := command.Hangups()
	defer deaf()
	go func() {
		select {
		case <-hangups:
			stop()
		case <-ctx.Done():
		}
	}()
	// With --json the answer alone goes to stdout.
	out := c.App.Writer
	if c.Bool("json") {
		out = c.App.ErrWriter
	}
	s := &story{roles: roles, view: newView(out), hosts: c.Int("hosts")}
	s.machines = simulatedMachines{s}
	if c.Bool("nix") {
		bin, version, err := findNix(c.Context, c.String("nix-bin-dir"))
		if err != nil {
			stop()
			return err
		}
		s.machines = &nixMachines{s: s, bin: bin, version: version}
	}
	remove, err := s.settleIn(c.String("dir"))
	if err != nil {
		stop()
		return err
	}
	// The fleet is stopped before its directory goes.
	defer func() {
		stop()
		s.machines.stop()
		s.wait()
		remove()
	}()
	chapters := s.chapters()
	if c.Bool("stay") {
		chapters = append(chapters, s.something())
	}
	happened, failed := s.tell(ctx, chapters)
	if c.Bool("json") {
		if err := command.Line(c, happened); err != nil {
			return err
		}
	}
	switch {
	case failed == nil:
	case command.HintOf(failed) != "" || errors.Is(failed, context.Canceled):
		return failed
	default:
		return command.Hinted(failed, "nixfleet demo --dir DIR keeps the logs: DIR/cp.log and DIR/hosts/*/agent.log")
	}
	if c.Bool("stay") {
		return sequel{s}.stay(ctx)
	}
	s.view.Say("look around in such a fleet, break and repair it: nixfleet demo --stay\n  a fleet of your own: " +
		"docs/getting-started.md")
	return nil
}

// settleIn takes a directory, or a temporary one that remove takes away.
func (s *story) settleIn(dir string) (remove func(), err error) {
	if dir == "" {
		if s.dir, err = os.MkdirTemp("", tempPrefix); err != nil {
			return nil, fmt.Errorf("make directory: %w", err)
		}
		return func() {
			if err := removeStores(s.dir); err != nil {
				s.view.Say("%s is left over: %v", s.dir, err)
			}
		}, nil
	}
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		return nil, command.Usage("give --dir a directory that does not exist yet", "%s is not empty", dir)
	}
	s.dir, err = filepath.Abs(dir)
	return func() {}, err
}

// tell runs the chapters until one fails, and says which of them happened.
func (s *story) tell(ctx context.Context, chapters []chapter) (happened map[string]bool, failed error) {
	happened = map[string]bool{}
	started := time.Now()
	s.giveUp = started.Add(timeout)
	for _, ch := range chapters {
		happened[ch.key] = false
		if failed != nil {
			continue
		}
		s.view.Title(ch.title)
		if err := ch.run(ctx); err != nil {
			failed = fmt.Errorf("%s: %w", ch.title, err)
			continue
		}
		happened[ch.key] = true
	}
	s.view.End()
	if failed == nil {
		s.view.Say("every chapter happened, in %s", time.Since(started).Round(100*time.Millisecond))
	}
	return happened, failed
}
