package operator

import (
	"cmp"
	"context"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"nixfleet/nixops/fleet"
	"nixfleet/roles/command"
	"nixfleet/roles/protocol"
	"nixfleet/roles/protocol/client"
)

const (
	// statusLimit is how many hosts a table has that nobody asked to be longer.
	statusLimit = 100
	// statusEvery is how often --watch looks.
	statusEvery = 2 * time.Second
)

// failWord is a word of --fail-on with its exit code.
type failWord struct {
	standing protocol.Standing
	code     int
}

// failOn are the words of --fail-on, the worst first.
var failOn = []failWord{
	{protocol.StandsFailed, 3}, {protocol.StandsSilent, 4}, {protocol.StandsMoving, 5}, {protocol.StandsWaiting, 6},
}

func statusCommand() *cli.Command {
	return &cli.Command{
		Name: "status", Usage: "what every host runs and what it should run", ArgsUsage: "[HOST]",
		Description: "The first line counts the fleet, and the table begins with what is worst: failed, silent, moving,\n" +
			"waiting, then what is as declared. HOST is a name or a pattern such as 'web-*'. A host is silent when it has\n" +
			"missed its check-ins, and marked stale when that is more than two freshness windows of its channel.\n" +
			"With --fail-on the exit code is that of the worst word that a host stands for: failed 3, silent 4, moving 5,\n" +
			"waiting 6. nixfleet host explain NAME says why a host waits.\n\n" +
			"Example:\n   nixfleet status\n   nixfleet status --watch\n   nixfleet status --channel stable --state failed\n" +
			"   nixfleet status --fail-on failed,silent\n" +
			"   nixfleet status --json | jq '.hosts[] | select(.converged | not) | .hostname'",
		Flags: append(connectionFlags(), command.JSONFlag(), command.NoColourFlag(),
			&cli.StringFlag{Name: "channel", Usage: "hosts of channels that match this `GLOB`"},
			&cli.StringFlag{Name: "tag", Usage: "hosts with a tag that matches this `GLOB`"},
			&cli.StringFlag{Name: "state", Usage: "hosts that stand so, a `GLOB`: failed, silent, moving, waiting, converged, " +
				"or a state of a rollout"},
			&cli.IntFlag{Name: "limit", Value: statusLimit, Usage: "show at most `NUMBER` hosts, the worst; 0 for all"},
			&cli.BoolFlag{Name: "watch", Usage: "stay and show what changes, until q is pressed"},
			&cli.StringFlag{Name: "fail-on", Usage: "exit with a code of its own when a host is one of these `WORDS`: failed, " +
				"silent, moving, waiting"}),
		Action: status,
	}
}

// statusQuery is what the flags of status ask for.
func statusQuery(c *cli.Context) (client.HostsQuery, error) {
	q := client.HostsQuery{Host: c.Args().First(), Channel: c.String("channel"), Tag: c.String("tag"),
		State: strings.ToLower(c.String("state")), WorstFirst: true, Limit: c.Int("limit")}
	if c.NArg() > 1 {
		return q, command.Usage("nixfleet status 'web-*'", "status takes one host or pattern")
	}
	for _, glob := range []string{q.Host, q.Channel, q.Tag, q.State} {
		if _, err := path.Match(glob, ""); err != nil {
			return q, command.Usage("nixfleet status 'web-*'", "%q is not a pattern", glob)
		}
	}
	// What people read in the table is what they type.
	if q.State == strings.ReplaceAll(protocol.AsDeclared, " ", "-") || q.State == protocol.AsDeclared {
		q.State = string(protocol.StandsConverged)
	}
	return q, nil
}

func status(c *cli.Context) error {
	q, err := statusQuery(c)
	if err != nil {
		return err
	}
	words, err := failWords(c.String("fail-on"))
	if err != nil {
		return err
	}
	plane, err := connect(c)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return statusJSON(c, plane, q, words)
	}
	view := &statusView{client: plane, query: q, colours: command.ColoursOf(c)}
	if c.Bool("watch") {
		err := command.Screen(c.Context, c.App.Writer, statusEvery, view.picture)
		return command.Hinted(err, "nixfleet status; nixfleet rollout watch prints what happens line by line")
	}
	text, err := view.look(c.Context, q.Limit)
	if err != nil {
		return explained(err, "ask for the hosts")
	}
	if _, err := fmt.Fprint(c.App.Writer, text); err != nil {
		return err
	}
	warnOfCertificates(c, plane)
	if view.counts.Hosts == 0 && q.Host != "" {
		return command.Hinted(fmt.Errorf("no host is called %s", q.Host), "nixfleet status lists them")
	}
	return failed(words, view.counts)
}

// statusJSON prints the answer as it came, and judges what it printed. Without filters it is v1's.
func statusJSON(c *cli.Context, plane *client.Client, q client.HostsQuery, words []protocol.Standing) error {
	ask := q.Values()
	if !c.IsSet("limit") || q.Limit <= 0 {
		ask.Del("limit")
		ask.Del("order")
	}
	where := "/v1/hosts"
	if len(ask) > 0 {
		where += "?" + ask.Encode()
	}
	answer, err := plane.Raw(c.Context, where)
	if err != nil {
		return explained(err, "ask for the hosts")
	}
	// Text lays out what it is given in place.
	if err := command.Text(c, answer.Clone()); err != nil || len(words) == 0 {
		return err
	}
	var all protocol.HostsResponse
	if err := protocol.DecodeKnown(answer, &all); err != nil {
		return explained(fmt.Errorf("answer: %w", err), "ask for the hosts")
	}
	narrowed(&all, q)
	return failed(words, *all.Counts)
}

// failWords reads --fail-on.
func failWords(text string) (words []protocol.Standing, err error) {
	for word := range strings.SplitSeq(text, ",") {
		if word = strings.TrimSpace(word); word == "" {
			continue
		}
		if !slices.ContainsFunc(failOn, func(f failWord) bool { return string(f.standing) == word }) {
			return nil, command.Usage("nixfleet status --fail-on failed,silent", "--fail-on has no word %q", word)
		}
		words = append(words, protocol.Standing(word))
	}
	return words, nil
}

// failed is the error of --fail-on, with the code of the worst.
func failed(words []protocol.Standing, counts protocol.HostCounts) error {
	for _, f := range failOn {
		if n := counts.Of(f.standing); n > 0 && slices.Contains(words, f.standing) {
			return command.Coded(f.code, command.Hinted(fmt.Errorf("%s %s", command.Plural(n, "host"), standsText(n,
				f.standing)), "nixfleet status --state %s", f.standing))
		}
	}
	return nil
}

func standsText(n int, s protocol.Standing) string {
	verb := "are"
	if n == 1 {
		verb = "is"
	}
	if s == protocol.StandsFailed {
		return "failed"
	}
	return verb + " " + string(s)
}

// narrowed does what a control plane of v1 does not: it filters, counts and sorts.
func narrowed(answer *protocol.HostsResponse, q client.HostsQuery) {
	if answer.Counts != nil {
		return
	}
	matches := func(glob, word string) bool {
		ok, err := path.Match(glob, word)
		return glob == "" || err == nil && ok
	}
	answer.Counts = &protocol.HostCounts{}
	answer.Hosts = slices.DeleteFunc(answer.Hosts, func(h protocol.HostEntry) bool {
		return !matches(q.Host, h.Hostname) || !matches(q.Channel, h.Channel) || q.Tag != "" ||
			!matches(q.State, string(h.Stands())) && !matches(q.State, strings.ToLower(h.Word()))
	})
	slices.SortStableFunc(answer.Hosts, func(a, b protocol.HostEntry) int {
		return cmp.Compare(slices.Index(protocol.Standings, a.Stands()), slices.Index(protocol.Standings, b.Stands()))
	})
	for i := range answer.Hosts {
		answer.Counts.Add(answer.Hosts[i].Stands())
	}
	if q.Limit > 0 && len(answer.Hosts) > q.Limit {
		answer.Hosts = answer.Hosts[:q.Limit]
	}
}

// channelsOf asks for the channels of the hosts that are shown. One that cannot be asked costs its column, not the
// table.
func channelsOf(ctx context.Context, plane *client.Client,
	hosts []protocol.HostEntry) map[string]protocol.ChannelResponse {
	channels := map[string]protocol.ChannelResponse{}
	for i := range hosts {
		name := hosts[i].Channel
		if _, asked := channels[name]; asked {
			continue
		}
		channels[name] = protocol.ChannelResponse{}
		if ch, err := plane.Channel(name).Read(ctx); err == nil {
			channels[name] = *ch
		}
	}
	return channels
}

// staleAfter is how many freshness windows a host may be silent before status marks it, as v1 does.
const staleAfter = 2

func stale(h *protocol.HostEntry, channel protocol.ChannelResponse, now time.Time) bool {
	window := fleet.Minutes(channel.FreshnessWindowMinutes)
	return window > 0 && h.LastCheckinAt != nil && now.Sub(h.LastCheckinAt.Time) > staleAfter*window
}
