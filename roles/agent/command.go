package agent

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"github.com/urfave/cli/v2"

	"nixfleet/nixops/sim"
	"nixfleet/roles/agent/journal"
	"nixfleet/roles/agent/verify"
	"nixfleet/roles/command"
	"nixfleet/roles/protocol"
)

// Command is `nixfleet agent`.
func Command() *cli.Command {
	return &cli.Command{
		Name:  "agent",
		Usage: "the agent: keep this host at its declared state",
		Description: "Example:\n" +
			"   nixfleet agent run --control-plane-url https://cp.example.com:8080 --machine-id web-01 \\\n" +
			"     --ca-cert fleet-root.cert.pem --bootstrap-token-file bootstrap-token",
		Subcommands: slices.Concat(unitCommands(), handCommands(), []*cli.Command{resetMarkCommand()}),
	}
}

// local are the flags of a command that runs on the host, beside its own.
func local(flags ...cli.Flag) []cli.Flag {
	return command.Variables(variables, append(append([]cli.Flag{stateDirFlag()}, hostFlags()...), flags...)...)
}

func reasonFlag() cli.Flag { return stringFlag("reason", "", "`TEXT` that is recorded and reported") }

// unitCommands are what the units of a host run, and what shows how they are.
func unitCommands() []*cli.Command {
	return []*cli.Command{
		{
			Name: "run", Usage: "run until told to stop",
			Description: "Example:\n   nixfleet agent run --control-plane-url https://cp.example.com:8080 " +
				"--machine-id web-01 --ca-cert fleet-root.cert.pem",
			Flags: runFlags(), Action: runCommand,
		},
		{
			Name: "status", Usage: "what this host runs, what it was told, what it waits for",
			Description: "Example:\n   nixfleet agent status --json",
			Flags:       local(command.JSONFlag()),
			Action:      statusCommand,
		},
		previewCommand(),
		{
			Name: "undo", Usage: "undo an unproven activation; the deadline runs this",
			Description: "Does nothing when there is nothing to undo.\n\nExample:\n" +
				"   nixfleet agent undo --reason 'the site is down'",
			Flags: local(reasonFlag(), boolFlag("deadline", "the window has passed"),
				stringFlag("unit", "", "with --deadline: only the activation whose deadline is this `UNIT`")),
			Action: undoCommand,
		},
		{
			Name: "guard", Usage: "undo at boot an activation that a power cut interrupted",
			Description: "Example:\n   nixfleet agent guard --state-dir /var/lib/nixfleet-agent",
			Flags: local(boolFlag("check-config", "check the flags and exit; nothing is undone or written"),
				boolFlag("boot-complete", "undo nothing; end when the boot loader may be told that this boot went well")),
			Action: guardCommand,
		},
	}
}

// handCommands are what root does without the fleet.
func handCommands() []*cli.Command {
	return []*cli.Command{
		{
			Name: "pause", Usage: "take no targets until resume; a running deadline goes on",
			Description: "Example:\n   nixfleet agent pause --reason 'disk is being replaced'",
			Flags:       local(reasonFlag()),
			Action: onHost(func(c *cli.Context, h hand) error {
				return h.pause(c.String("reason"))
			}),
		},
		{
			Name: "resume", Usage: "follow the fleet again",
			Description: "Example:\n   nixfleet agent resume",
			Flags:       local(),
			Action: onHost(func(c *cli.Context, h hand) error {
				return h.resume(c.Context)
			}),
		},
		{
			Name: "rollback", Usage: "return to the generation before the confirmed one, and stay there",
			Description: "Example:\n   nixfleet agent rollback --reason 'printing is broken'",
			Flags:       local(reasonFlag()),
			Action: onHost(func(c *cli.Context, h hand) error {
				return h.rollBack(c.Context, c.String("reason"))
			}),
		},
		{
			Name: "activate", Usage: "run a closure by hand, until resume or a new release", ArgsUsage: "PATH",
			Description: "Example:\n   nixfleet agent activate /nix/store/…-nixos-system-web-01-25.11",
			Flags:       local(reasonFlag()),
			Action: onHost(func(c *cli.Context, h hand) error {
				if c.NArg() != 1 {
					return &command.Error{Err: errors.New("activate takes one store path; options come before it"), Hint: activateHint}
				}
				return h.activate(c.Context, c.Args().First(), c.String("reason"))
			}),
		},
	}
}

func resetMarkCommand() *cli.Command {
	return &cli.Command{
		Name: "reset-mark", Usage: "forget the newest release seen; needed after a release dated far in the future",
		Description: "Example:\n   nixfleet agent reset-mark --reason 'a release from the far future'",
		Flags: local(reasonFlag(), stringFlag("client-cert", "/var/lib/nixfleet/agent-cert.pem",
			"`FILE` of this host's certificate, beside which the mark's copy is (default: where the agent last kept it)")),
		Action: onHost(func(c *cli.Context, h hand) error {
			place := verify.OutsideDirectory(string(h.Dir), c.String("client-cert"))
			var s status
			if !c.IsSet("client-cert") && h.Dir.Read(statusName, &s) == nil && s.MarkCopy != "" {
				place = s.MarkCopy
			}
			outside, err := journal.Open(place)
			if err != nil {
				return err
			}
			if err := (verify.Marks{State: h.Dir, Outside: outside}).Reset(); err != nil {
				return err
			}
			if err := h.record(act{Kind: protocol.KindMarkReset, Text: c.String("reason")}); err != nil {
				return err
			}
			_, err = fmt.Fprintln(c.App.Writer, "the mark is forgotten: the next release that verifies is accepted, however old")
			return err
		}),
	}
}

func newLogger(w io.Writer, level zerolog.Level) zerolog.Logger {
	log, _ := command.Logger(w, level, command.LogJSON) // a format that it knows
	return log
}

func runCommand(c *cli.Context) error {
	level, err := command.LogLevel(c)
	if err != nil {
		level = zerolog.InfoLevel
	}
	cfg := configOf(c, newLogger(c.App.Writer, level))
	defer hangUps(cfg.Log)()
	if c.Bool("check-config") {
		return checkConfig(c, &cfg)
	}
	_, stop := command.Hangups() // the files are read when they are needed
	defer stop()
	if err := cfg.makeHost(); err != nil {
		return err
	}
	if machine, ok := cfg.Host.(*sim.Host); ok {
		return runSimulated(c.Context, cfg, machine)
	}
	return Run(c.Context, cfg)
}

// hangUps keeps SIGHUP from ending the agent, as it would by default: there is nothing to
// read again, since trust file, certificate and token are read at every use. The signal is
// taken rather than ignored, which the programs that the agent starts would inherit.
func hangUps(log zerolog.Logger) (stop func()) {
	signals, done := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(signals, syscall.SIGHUP)
	go func() {
		for {
			select {
			case <-signals:
				log.Info().Msg("SIGHUP: nothing to reload; files are read at every use")
			case <-done:
				return
			}
		}
	}()
	return func() {
		signal.Stop(signals)
		close(done)
	}
}

// onHost runs a command of root's on a machine that has an agent.
func onHost(work func(*cli.Context, hand) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		if err := asRoot(c); err != nil {
			return err
		}
		if err := hasRun(c.String("state-dir")); err != nil {
			return err
		}
		return inState(c, func(h hand) error { return work(c, h) })
	}
}

// hasRun returns an error where no agent has made the state directory.
func hasRun(dir string) error {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return &command.Error{Err: fmt.Errorf("no agent has run on this machine: %s does not exist", dir),
			Hint: "systemctl status nixfleet-agent"}
	}
	return nil
}

func asRoot(c *cli.Context) error {
	if c.String("simulated-host") == "" && c.String("root") == "" && os.Geteuid() != 0 {
		return &command.Error{Err: errors.New("only root may run this command"), Hint: "sudo nixfleet agent " +
			c.Command.Name}
	}
	return nil
}

// inState runs a command with the host and the state directory of the flags. The directory
// is made where it is missing: the guard runs at the first boot as well.
func inState(c *cli.Context, work func(hand) error) error {
	h, err := handOf(c)
	if err != nil {
		return err
	}
	if _, err := journal.Open(string(h.Dir)); err != nil {
		return &command.Error{Err: err, Hint: "this needs root"}
	}
	return work(h)
}

// handOf makes a hand of a command's flags.
func handOf(c *cli.Context) (hand, error) {
	if err := asRoot(c); err != nil {
		return hand{}, err
	}
	log := newLogger(c.App.ErrWriter, zerolog.InfoLevel)
	cfg := Config{hostConfig: hostConfigOf(c, log), simulated: c.String("simulated-host"),
		simulatedIn: c.String("simulated-cache"), StateDir: c.String("state-dir"), Log: log}
	err := cfg.makeHost()
	h := hand{undoerOf(cfg), c.App.Writer}
	h.Apart = true
	return h, err
}

// undoCommand undoes even where the state directory is gone, cannot be written or cannot be
// trusted, since a release may be what has done that. It makes nothing in its place.
func undoCommand(c *cli.Context) error {
	h, err := handOf(c)
	if err != nil {
		return err
	}
	if err := journal.OwnOnly(string(h.Dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		h.Log.Error().Err(err).Msg("state directory not believed; the note of the deadline is")
		h.Dir = notBelieved
	}
	if c.Bool("deadline") {
		return h.Insist(c.Context, c.String("unit"))
	}
	return h.undo(c.Context, c.String("reason"))
}

// notBelieved is a state directory that can neither exist nor be made.
const notBelieved = journal.Directory("/dev/null/state-directory")

func statusCommand(c *cli.Context) error {
	return onHost(func(c *cli.Context, h hand) error {
		s := gather(c.Context, h.Dir, h.Host)
		if !c.Bool("json") {
			return s.print(c.App.Writer, time.Now())
		}
		return command.Line(c, s)
	})(c)
}
