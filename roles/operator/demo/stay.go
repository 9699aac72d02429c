package demo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"nixfleet/roles/command"
	"nixfleet/roles/protocol"
	"nixfleet/roles/protocol/client"
)

// Words of `demo push`: the release works, or breaks the canary.
const (
	pushGood = "good"
	pushBad  = "bad"
)

// socketName is where a demonstration that stays takes wishes, in its directory, which is its user's alone.
const socketName = "demo.sock"

// answerTime is how long `demo push` waits for its answer: a release with a real Nix is built first.
const answerTime = 2 * time.Minute

// something is the chapter that leaves something to look at: a history, and a rollout that stopped.
func (s *story) something() chapter {
	return chapter{"explore", "8. Release 5 goes well, and release 6 breaks the canary: something to look at",
		func(ctx context.Context) error {
			if err := s.publish(ctx, func(string) int { return 5 }, 5, false); err != nil {
				return err
			}
			if err := s.converged(ctx, 5); err != nil {
				return err
			}
			if err := s.breakStable(ctx, 6); err != nil {
				return err
			}
			if err := s.until(ctx, s.canary()+" is back on release 5", func() (bool, error) {
				return runs(s.host(s.canary()), 5), nil
			}); err != nil {
				return err
			}
			s.view.Say("the rollout of release 6 is halted; %s is back on release 5", s.canary())
			return nil
		}}
}

// breakStable releases what breaks the canary, and waits until its rollout is halted. Channel edge keeps the release
// that it has.
func (s *story) breakStable(ctx context.Context, n int) error {
	if err := s.publish(ctx, s.stableOnly(n), n, true); err != nil {
		return err
	}
	return s.halted(ctx, n)
}

// stableOnly is release n for channel stable, and for edge what it runs.
func (s *story) stableOnly(n int) func(host string) int {
	before := s.last.edge
	return func(host string) int {
		if strings.HasPrefix(host, "edge") {
			return before
		}
		return n
	}
}

func (s *story) halted(ctx context.Context, n int) error {
	return s.until(ctx, fmt.Sprintf("the rollout of release %d halts", n), func() (bool, error) {
		open, err := s.client.Rollouts(ctx, client.RolloutsQuery{})
		if err != nil {
			return false, nil
		}
		return slices.ContainsFunc(open.Rollouts, func(r protocol.RolloutSummary) bool {
			return r.Channel == "stable" && r.State == string(protocol.RolloutHalted)
		}), nil
	})
}

// sequel is what comes after the story: the fleet goes on, and takes the releases that `demo push` asks for.
type sequel struct{ *story }

// stay keeps the fleet until ctx ends.
func (s sequel) stay(ctx context.Context) error {
	listener, err := net.Listen("unix", s.path(socketName))
	if err != nil {
		return fmt.Errorf("take wishes: %w", err)
	}
	context.AfterFunc(ctx, func() { listener.Close() })
	s.view.Say("the fleet goes on until Ctrl-C; look around with\n\n%s\nand play on with\n\n%s", lines(s.tries()),
		lines(s.plays()))
	for {
		conn, err := listener.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("take wishes: %w", err)
		}
		s.fulfil(ctx, conn)
	}
}

// tries are five commands to paste.
func (s sequel) tries() []string {
	to := " --config " + command.ShellWord(s.config())
	return []string{
		s.program() + " status" + to,
		s.program() + " host explain " + s.canary() + to,
		s.program() + " host log " + s.canary() + to,
		s.program() + " plan" + to,
		s.program() + " rollout trace stable" + to,
	}
}

// plays are what makes something happen.
func (s sequel) plays() []string {
	at := " --dir " + command.ShellWord(s.dir)
	return []string{
		s.program() + " demo push " + pushGood + at,
		s.program() + " demo push " + pushBad + at,
		s.program() + " rollout resume stable --reason 'go on regardless' --config " + command.ShellWord(s.config()),
	}
}

// program is this executable as it can be typed.
func (s sequel) program() string {
	path, err := os.Executable()
	if err != nil {
		return "nixfleet"
	}
	return command.ShellWord(path)
}

func lines(commands []string) string {
	var b strings.Builder
	for _, c := range commands {
		b.WriteString("  " + c + "\n")
	}
	return b.String()
}

// fulfil reads one wish, releases what it asks for, and answers with a line.
func (s sequel) fulfil(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(answerTime)); err != nil {
		return
	}
	wish, err := bufio.NewReader(io.LimitReader(conn, 64)).ReadString('\n')
	if err != nil {
		return
	}
	answer, err := s.push(ctx, strings.TrimSpace(wish))
	if err != nil {
		answer = "error: " + err.Error()
	}
	s.view.Say("%s", answer)
	fmt.Fprintln(conn, strings.ReplaceAll(answer, "\n", " "))
}

// push makes one more release.
func (s sequel) push(ctx context.Context, wish string) (string, error) {
	s.giveUp = time.Now().Add(answerTime)
	n := s.last.newest + 1
	switch wish {
	case pushGood:
		if err := s.publish(ctx, func(string) int { return n }, n, false); err != nil {
			return "", err
		}
		return fmt.Sprintf("release %d is pushed to both channels", n), nil
	case pushBad:
		if err := s.publish(ctx, s.stableOnly(n), n, true); err != nil {
			return "", err
		}
		return fmt.Sprintf("release %d is pushed to channel stable, and will break %s", n, s.canary()), nil
	}
	return "", fmt.Errorf("a release is %s or %s, not %q", pushGood, pushBad, wish)
}

func pushCommand() *cli.Command {
	return &cli.Command{
		Name: "push", Usage: "make a release in the demonstration that stays", ArgsUsage: pushGood + "|" + pushBad,
		Description: "A good release reaches every host; a bad one breaks the canary of channel stable and halts.\n\n" +
			"Example:\n   nixfleet demo push bad",
		Flags: []cli.Flag{&cli.StringFlag{Name: "dir",
			Usage: "`DIR` of the demonstration (default: the newest one that stays)"}},
		Action: func(c *cli.Context) error {
			wish := c.Args().First()
			if c.NArg() != 1 || wish != pushGood && wish != pushBad {
				return command.Usage("nixfleet demo push good", "demo push takes one word, %s or %s", pushGood, pushBad)
			}
			conn, err := staying(c.String("dir"))
			if err != nil {
				return command.Hinted(err, "nixfleet demo --stay starts one, in another terminal")
			}
			defer conn.Close()
			if err := conn.SetDeadline(time.Now().Add(answerTime)); err != nil {
				return err
			}
			fmt.Fprintln(conn, wish)
			answer, err := bufio.NewReader(io.LimitReader(conn, 1<<16)).ReadString('\n')
			if err != nil {
				return fmt.Errorf("the demonstration did not answer: %w", err)
			}
			if text, failed := strings.CutPrefix(strings.TrimSpace(answer), "error: "); failed {
				return errors.New(text)
			}
			_, err = fmt.Fprint(c.App.Writer, command.PlainLines(answer))
			return err
		},
	}
}

// staying connects to the demonstration in dir, or to the newest one of this machine that answers.
func staying(dir string) (net.Conn, error) {
	dirs := []string{dir}
	if dir == "" {
		var err error
		if dirs, err = filepath.Glob(filepath.Join(os.TempDir(), tempPrefix+"*")); err != nil {
			return nil, err
		}
		slices.SortFunc(dirs, func(a, b string) int { return made(b).Compare(made(a)) })
	}
	err := errors.New("no demonstration stays on this machine")
	for _, d := range dirs {
		conn, failed := net.Dial("unix", filepath.Join(d, socketName))
		if failed == nil {
			return conn, nil
		}
		if dir != "" {
			err = fmt.Errorf("the demonstration in %s does not stay: %w", dir, failed)
		}
	}
	return nil, err
}

func made(dir string) time.Time {
	info, err := os.Stat(dir)
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}
