package operator

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/urfave/cli/v2"

	"nixfleet/nixops/fleet"
	"nixfleet/roles/command"
	"nixfleet/roles/protocol"
	"nixfleet/roles/protocol/client"
)

// commitPattern is the beginning of a commit's id that is long enough to mean one.
var commitPattern = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[0-9a-f]{7,64}$`) })

// released waits until the release of a commit is in force and follows its rollouts, that of one channel or all of
// them, each to its end. The first that does not converge decides.
func (w *watcher) released(ctx context.Context, sha, channel string) error {
	if !commitPattern().MatchString(sha) {
		return command.Usage("nixfleet rollout watch --commit \"$(git rev-parse HEAD)\"",
			"--commit %q is not a commit, or less than seven digits of one", sha)
	}
	ids, err := w.rolloutsOf(ctx, sha, channel)
	if err == nil {
		err = w.each(ctx, ids)
	}
	if ranOut(w.c, err) {
		return command.Coded(exitTimeout, command.Hinted(fmt.Errorf("the release of commit %s is not through after %s",
			command.Short(sha), w.c.Duration("timeout")), "nixfleet status; nixfleet rollout list"))
	}
	return err
}

// each follows rollouts one after the other.
func (w *watcher) each(ctx context.Context, ids []string) error {
	for _, id := range ids {
		w.query, w.last, w.missed = client.EventQuery{}, nil, false
		if err := w.follow(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

// rolloutsOf waits for the rollouts of a commit.
func (w *watcher) rolloutsOf(ctx context.Context, sha, channel string) ([]string, error) {
	said := false
	for {
		ids, err := w.declaredBy(ctx, sha, channel)
		if err := lasting(ctx, err, "look for the release of commit "+command.Short(sha)); err != nil {
			return nil, err
		}
		switch {
		case len(ids) > 0:
			return ids, nil
		case !said:
			said = true
			progress(w.c, "the release of commit %s is not in force yet; waiting for it", command.Short(sha))
		}
		if err := pause(ctx); err != nil {
			return nil, err
		}
	}
}

// declaredBy are the rollouts of the release in force if it is of that commit, and otherwise those that one of that
// commit has opened before.
func (w *watcher) declaredBy(ctx context.Context, sha, channel string) (ids []string, err error) {
	channels, err := w.client.Channels(ctx)
	if err != nil {
		return nil, err
	}
	known := channel == ""
	for _, ch := range channels.Channels {
		known = known || ch.Name == channel
		if (channel == "" || ch.Name == channel) && ch.RolloutID != nil && ch.DeclaredCICommit != nil &&
			strings.HasPrefix(*ch.DeclaredCICommit, sha) {
			ids = append(ids, *ch.RolloutID)
		}
	}
	if !known {
		return nil, command.Hinted(fmt.Errorf("the fleet has no channel %q", channel), "nixfleet release list")
	}
	if len(ids) > 0 {
		return ids, nil
	}
	all, err := w.client.Rollouts(ctx, client.RolloutsQuery{All: true, Heads: true})
	if err != nil {
		return nil, err
	}
	for _, r := range all.Rollouts {
		if (channel == "" || r.Channel == channel) && r.Ref != "" && strings.HasPrefix(r.Ref, sha) {
			ids = append(ids, r.RolloutID)
		}
	}
	return ids, nil
}

// waitFlags are those of release --wait: who is asked how it went.
func waitFlags() []cli.Flag {
	connection := connectionFlags()
	return append(connection[:len(connection)-1],
		&cli.BoolFlag{Name: "wait", Usage: "after publishing, follow the release until it is everywhere; exit codes as of " +
			"nixfleet rollout watch"},
		&cli.DurationFlag{Name: "wait-timeout", Usage: "wait no longer than this `TIME` (default: for ever)"})
}

// waitForRelease follows the rollouts of what was just published, by their ids: never those of the release before.
func waitForRelease(c *cli.Context, plane *client.Client, ids []string) error {
	ctx, cancel := limited(c, "wait-timeout")
	defer cancel()
	// It may look at its source only in a minute; one that cannot be reached now is waited for.
	if err := plane.Poke(ctx); err != nil {
		progress(c, "the control plane was not told to look now (%v); it looks by itself", err)
	}
	w := &watcher{c: c, client: plane}
	err := w.each(ctx, ids)
	if ranOut(c, err) {
		return command.Coded(exitTimeout, command.Hinted(fmt.Errorf("the release is not through after %s",
			c.Duration("wait-timeout")), "nixfleet status; nixfleet rollout list"))
	}
	return err
}

// releaseViews are the verbs of release that only look.
func releaseViews() []*cli.Command {
	return []*cli.Command{
		verb("list", "", "releases that the control plane remembers, by channel, the newest first",
			"nixfleet release list", releaseList),
		verb("show", "[CHANNEL]", "the release in force of each channel, or of one", "nixfleet release show stable",
			releaseShow),
	}
}

func releaseList(c *cli.Context) error {
	plane, err := connect(c)
	if err != nil {
		return err
	}
	all := client.RolloutsQuery{All: true, Heads: true}
	if c.Bool("json") {
		answer, err := plane.Raw(c.Context, "/v1/rollouts?"+all.Values().Encode())
		if err != nil {
			return explained(err, "ask for the releases")
		}
		return command.Text(c, answer)
	}
	answer, err := plane.Rollouts(c.Context, all)
	if err != nil {
		return explained(err, "ask for the releases")
	}
	rows := [][]string{{"RELEASED", "COMMIT", "CHANNEL", "ROLLOUT", "STATE"}}
	for i := range answer.Rollouts {
		r := &answer.Rollouts[i]
		commit := command.Short(r.Ref)
		rows = append(rows, []string{when(r.CreatedAt.Time), command.OrDash(&commit), command.Plain(r.Channel),
			command.Plain(command.Short(r.RolloutID)), rolloutState(r)})
	}
	return command.Table(c.App.Writer, rows)
}

func releaseShow(c *cli.Context) error {
	plane, err := connect(c)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		answer, err := plane.Raw(c.Context, "/v1/channels")
		if err != nil {
			return explained(err, "ask for the channels")
		}
		return command.Text(c, answer)
	}
	answer, err := plane.Channels(c.Context)
	if err != nil {
		return explained(err, "ask for the channels")
	}
	now := time.Now()
	rows := [][]string{{"CHANNEL", "COMMIT", "SIGNED", "FRESH FOR", "ROLLOUT", "STATE", "HOSTS"}}
	for i := range answer.Channels {
		ch := &answer.Channels[i]
		if want := c.Args().First(); want == "" || want == ch.Name {
			rows = append(rows, channelRow(ch, now))
		}
	}
	if len(rows) == 1 {
		return command.Hinted(fmt.Errorf("the fleet has no channel %q", c.Args().First()), "nixfleet release show")
	}
	return command.Table(c.App.Writer, rows)
}

// channelRow is the release in force on a channel.
func channelRow(ch *protocol.ChannelEntry, now time.Time) []string {
	commit, signed, fresh, id := "-", "-", "-", "-"
	if ch.DeclaredCICommit != nil {
		commit = command.Plain(command.Short(*ch.DeclaredCICommit))
	}
	if ch.SignedAt != nil {
		signed = since(ch.SignedAt.Time, now)
		left := ch.SignedAt.Add(fleet.Minutes(ch.FreshnessWindowMinutes)).Sub(now)
		if fresh = command.Age(left); left <= 0 {
			fresh = "stale"
		}
	}
	if ch.RolloutID != nil {
		id = command.Plain(command.Short(*ch.RolloutID))
	}
	hosts := fmt.Sprintf("%d of %d as declared", ch.Counts.Converged, ch.Counts.Hosts)
	return []string{command.Plain(ch.Name), commit, signed, fresh, id, command.Plain(ch.RolloutState), hosts}
}
