package operator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"nixfleet/pki"
	"nixfleet/roles/command"
	"nixfleet/roles/protocol"
	"nixfleet/roles/protocol/client"
)

// Exit codes of `rollout watch`, which deploy scripts wait for.
const (
	exitFailed     = 3 // halted, reverting or reverted
	exitCancelled  = 4
	exitSuperseded = 5
	exitTimeout    = 6
)

func watchCommand() *cli.Command {
	return &cli.Command{
		Name: "watch", Usage: "print what happens, as it happens", ArgsUsage: "[" + rolloutArgs + "]",
		Description: "With a ROLLOUT it ends with that rollout, and the exit code tells how: 0 converged, 3 halted or\n" +
			"reverted, 4 cancelled, 5 superseded by a newer release, 6 still going on after --timeout. An id that is\n" +
			"not known yet is waited for. Without a ROLLOUT the command follows the whole fleet.\n\n" +
			"With --commit it waits until the release of that commit is in force, and for the end of its rollouts, on one\n" +
			"channel or on all: so that a script is never told of the release before.\n\n" +
			"Example:\n   nixfleet rollout watch\n   nixfleet rollout watch stable --timeout 2h\n" +
			"   nixfleet rollout watch --commit \"$(git rev-parse HEAD)\" --timeout 2h",
		Flags: append(connectionFlags(), command.JSONFlag(),
			&cli.Int64Flag{Name: "after", Usage: "begin after the event numbered `SEQ` (default: the oldest one kept)"},
			&cli.StringFlag{Name: "commit", Usage: "the rollouts of the release of this commit `SHA`, or its beginning"},
			&cli.DurationFlag{Name: "timeout", Usage: "wait no longer than this `TIME` for the end of the rollout (default: " +
				"for ever)"}),
		Action: rolloutWatch,
	}
}

// watchPause is how long to wait before a broken event stream is taken up again.
const watchPause = 2 * time.Second

// errEvent ends a stream at an event that may have ended the rollout.
var errEvent = errors.New("the rollout may be over")

// endings are the kinds of events after which a rollout may be over.
var endings = []string{
	protocol.LogConverged, protocol.LogHalted, protocol.LogReverting, protocol.LogReverted, protocol.LogCancelled,
	protocol.LogSuperseded,
}

// watcher follows the event log over restarts of the control plane.
type watcher struct {
	c      *cli.Context
	client *client.Client
	query  client.EventQuery
	missed bool // said that the rollout is not known yet
	last   *protocol.Event
}

func rolloutWatch(c *cli.Context) error {
	plane, err := connect(c)
	if err != nil {
		return err
	}
	if c.NArg() > 1 {
		return command.Usage("nixfleet rollout watch stable", "rollout watch takes one rollout at most")
	}
	w := &watcher{c: c, client: plane, query: client.EventQuery{After: c.Int64("after")}}
	ctx, cancel := limited(c, "timeout")
	defer cancel()
	if sha := c.String("commit"); sha != "" {
		return w.released(ctx, sha, c.Args().First())
	}
	if c.NArg() == 0 {
		// Whoever answered once is waited for when he falls silent; who never did is
		// a mistake in the configuration.
		if _, err := plane.Rollouts(c.Context, client.RolloutsQuery{}); err != nil {
			return explained(err, "watch events")
		}
		return w.follow(c.Context, "")
	}
	id, found, err := findRollout(c, plane)
	if err != nil {
		return err
	}
	if found != nil && found.Channel == c.Args().First() && over(found.State) {
		progress(c, "%s has no rollout under way; this is the one before, of commit %s (--commit SHA waits for a newer one)",
			command.Plain(found.Channel), command.Short(cmp.Or(found.Ref, "unknown")))
	}
	err = w.follow(ctx, id)
	if ranOut(c, err) {
		return command.Coded(exitTimeout, command.Hinted(fmt.Errorf("rollout %s is not over after %s", command.Short(id),
			c.Duration("timeout")), "nixfleet rollout show %s", command.Short(id)))
	}
	return err
}

// limited is the command's context, which ends after the time of a flag, where that has one.
func limited(c *cli.Context, flag string) (context.Context, context.CancelFunc) {
	if limit := c.Duration(flag); limit > 0 {
		return context.WithTimeout(c.Context, limit)
	}
	return c.Context, func() {}
}

// ranOut reports whether it was the time of a flag that ended what limited began.
func ranOut(c *cli.Context, err error) bool {
	return errors.Is(err, context.DeadlineExceeded) && c.Context.Err() == nil
}

// lasting is the error that no waiting mends, nil where it is worth asking again: the end of ctx, an error of the
// command itself, a refusal, and a peer that one of the two sides does not trust.
func lasting(ctx context.Context, err error, doing string) error {
	var refused *client.Error
	var final *command.Error
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err == nil:
		return nil
	case errors.As(err, &final):
		return err
	case errors.As(err, &refused) && refused.Status < 500, distrust(err) != "":
		return explained(err, doing)
	}
	return nil
}

// pause waits before the control plane is asked again.
func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(watchPause):
		return nil
	}
}

// follow prints events until ctx ends, the control plane refuses, or the
// rollout, when there is one, is over.
func (w *watcher) follow(ctx context.Context, id string) error {
	w.query.Rollout = id
	for {
		err := w.round(ctx, id)
		if err == nil {
			return nil
		}
		if err := lasting(ctx, err, "watch events"); err != nil {
			return err
		}
		if errors.Is(err, errEvent) {
			continue
		}
		// A control plane that restarts is not a reason to look away.
		progress(w.c, "the event stream ended (%v); connecting again after event %d", err, w.query.After)
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

// round asks how the rollout stands, prints what there is, and then what comes.
// Nil: the rollout has converged.
func (w *watcher) round(ctx context.Context, id string) error {
	if w.last != nil {
		goes, err := continues(ctx, w.client, w.last)
		if err != nil {
			return err
		}
		if !goes {
			progress(w.c, "event %d is not in the log any more: the control plane has lost its database; beginning with its "+
				"first event", w.last.Seq)
			w.query.After, w.last = 0, nil
		}
	}
	w.query.Past = id != ""
	if id != "" {
		life, err := w.lifecycle(ctx, id)
		if err != nil {
			return err
		}
		if err := w.print(ctx); !errors.Is(err, io.EOF) && !errors.Is(err, errEvent) {
			return err
		}
		if done, err := w.outcome(life); done {
			return err
		}
		w.query.Past = false
	}
	return w.print(ctx)
}

// continues says whether the log still has the last event that was printed. A
// control plane that lost its database counts anew, and would have nothing to say
// until it comes to that number.
func continues(ctx context.Context, plane *client.Client, last *protocol.Event) (bool, error) {
	goes := false
	err := plane.Events(ctx, client.EventQuery{After: last.Seq - 1, Past: true}, func(e protocol.Event) error {
		goes = e == *last
		return io.EOF
	})
	if !errors.Is(err, io.EOF) {
		return false, err
	}
	return goes, nil
}

// lifecycle is nil while the control plane does not know the rollout.
func (w *watcher) lifecycle(ctx context.Context, id string) (*protocol.Lifecycle, error) {
	life, err := w.client.Lifecycle(ctx, id)
	var refused *client.Error
	if errors.As(err, &refused) && refused.Status == 404 {
		if !w.missed {
			w.missed = true
			progress(w.c, "rollout %s is not known yet; waiting for it", command.Short(id))
		}
		return nil, nil
	}
	return life, err
}

// print prints events until the stream ends; past ones to the last.
func (w *watcher) print(ctx context.Context) error {
	return w.client.Events(ctx, w.query, func(e protocol.Event) error {
		w.query.After, w.last = e.Seq, &e
		if err := printEvent(w.c, &e); err != nil {
			return &command.Error{Err: err, Code: 1}
		}
		if w.query.Rollout != "" && !w.query.Past && slices.Contains(endings, e.Kind) {
			return errEvent
		}
		return nil
	})
}

// outcome is how a rollout ended, if it did.
func (w *watcher) outcome(life *protocol.Lifecycle) (done bool, err error) {
	if life == nil {
		return false, nil
	}
	name := "rollout " + command.Short(life.RolloutID)
	why := ""
	if life.HaltReason != "" {
		why = ": " + command.Plain(life.HaltReason)
	}
	switch protocol.RolloutState(life.State) {
	case protocol.RolloutConverged:
		progress(w.c, "%s has converged", name)
		return true, nil
	case protocol.RolloutHalted, protocol.RolloutReverting, protocol.RolloutReverted:
		return true, command.Coded(exitFailed, command.Hinted(fmt.Errorf("%s is %s%s", name, strings.ToLower(life.State),
			why), "nixfleet rollout show %s", command.Short(life.RolloutID)))
	case protocol.RolloutCancelled:
		return true, command.Coded(exitCancelled, fmt.Errorf("%s was cancelled", name))
	case protocol.RolloutSuperseded:
		return true, command.Coded(exitSuperseded, command.Hinted(fmt.Errorf("%s was superseded by a newer release", name),
			"nixfleet rollout watch %s", command.OrDash(&life.Channel)))
	}
	return false, nil
}

func printEvent(c *cli.Context, e *protocol.Event) error {
	if !c.Bool("json") {
		_, err := fmt.Fprintln(c.App.Writer, eventLine(e))
		return err
	}
	line, err := pki.Marshal(e)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.App.Writer, "%s\n", line)
	return err
}

// eventLine is one event for a person.
func eventLine(e *protocol.Event) string {
	parts := []string{when(e.At.Time), command.Plain(e.Kind)}
	for _, part := range []string{e.Channel, command.Short(e.RolloutID), e.Host, e.Actor, e.Reason, e.Detail} {
		if part != "" {
			parts = append(parts, command.Plain(part))
		}
	}
	return strings.Join(slices.Compact(parts), "  ")
}
