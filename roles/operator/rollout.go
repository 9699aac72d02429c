package operator

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/urfave/cli/v2"

	"nixfleet/nixops/fleet"
	"nixfleet/roles/command"
	"nixfleet/roles/protocol"
	"nixfleet/roles/protocol/client"
)

const rolloutArgs = "ROLLOUT"

func rolloutCommand() *cli.Command {
	reason := func() cli.Flag { return &cli.StringFlag{Name: "reason", Usage: "`TEXT` for the record"} }
	return &cli.Command{
		Name: "rollout", Usage: "releases on their way through the fleet",
		Description: "ROLLOUT is an id, the beginning of one, or the name of its channel.\n\nExample:\n   nixfleet " +
			"rollout show stable",
		Subcommands: []*cli.Command{
			verb("list", "", "the rollouts that are not done", "nixfleet rollout list\n   nixfleet rollout list --all",
				rolloutList, &cli.BoolFlag{Name: "all", Usage: "also those that are over and still in the database"}),
			verb("show", rolloutArgs, "one rollout and the state of its hosts", "nixfleet rollout show stable", rolloutShow),
			verb("trace", rolloutArgs, "every dispatch of a rollout and how it ended",
				"nixfleet rollout trace stable --json\n   nixfleet rollout trace stable --events", rolloutTrace,
				&cli.BoolFlag{Name: "events", Usage: "print its log instead: who, what, when and why"}),
			verb("pause", rolloutArgs, "dispatch no further hosts until resumed",
				"nixfleet rollout pause stable --reason 'incident 42'", hold("pause", "paused"), reason()),
			verb("resume", rolloutArgs, "go on with a paused rollout",
				"nixfleet rollout resume stable --reason 'incident 42 closed'", hold("resume", "resumed"), reason()),
			verb("cancel", rolloutArgs, "end a rollout; hosts that have it keep it",
				"nixfleet rollout cancel stable --reason 'wrong kernel'", hold("cancel", "cancelled"), reason()),
			watchCommand(),
		},
	}
}

// findRollout resolves what was typed: a rollout that is not over before one
// that is. A full id is taken as it is: it may be no longer listed, or not yet.
func findRollout(c *cli.Context, plane *client.Client) (id string, found *protocol.RolloutSummary, err error) {
	word := c.Args().First()
	if c.NArg() != 1 || word == "" {
		return "", nil, command.Usage("nixfleet rollout list", "%s takes one rollout", c.Command.HelpName)
	}
	answer, err := plane.Rollouts(c.Context, client.RolloutsQuery{All: true})
	if err != nil {
		return "", nil, explained(err, "ask for the rollouts")
	}
	var named []*protocol.RolloutSummary
	for i := range answer.Rollouts {
		r := &answer.Rollouts[i]
		if r.RolloutID == word || r.Channel == word || len(word) >= 4 && strings.HasPrefix(r.RolloutID, word) {
			named = append(named, r)
		}
	}
	switch {
	case len(named) == 0 && fleet.ValidRolloutID(word):
		return word, nil, nil
	case len(named) == 0:
		return "", nil, command.Hinted(fmt.Errorf("no rollout is called %q", word),
			"nixfleet rollout list; one that was forgotten goes by its full id")
	case len(named) > 1 && named[0].Channel != word:
		return "", nil, command.Hinted(fmt.Errorf("%d rollouts begin with %q", len(named), word),
			"type more of the id")
	}
	// Of a channel's rollouts the newest comes first.
	if i := slices.IndexFunc(named, func(r *protocol.RolloutSummary) bool { return !over(r.State) }); i >= 0 {
		return named[i].RolloutID, named[i], nil
	}
	return named[0].RolloutID, named[0], nil
}

// over: nothing more comes of a rollout in this state. A v1 control plane says
// no state, and lists none that is over.
func over(state string) bool {
	switch protocol.RolloutState(state) {
	case protocol.RolloutConverged, protocol.RolloutReverted, protocol.RolloutCancelled, protocol.RolloutSuperseded:
		return true
	}
	return false
}

func rolloutList(c *cli.Context) error {
	plane, err := connect(c)
	if err != nil {
		return err
	}
	var body jsontext.Value
	answer, err := plane.Keeping(&body).Rollouts(c.Context, client.RolloutsQuery{All: c.Bool("all")})
	if err != nil {
		return explained(err, "ask for the rollouts")
	}
	if c.Bool("json") {
		return command.Text(c, body)
	}
	rows := [][]string{{"ROLLOUT", "CHANNEL", "STATE", "WAVE", "HOSTS", "CREATED", "WHY"}}
	for i := range answer.Rollouts {
		r := &answer.Rollouts[i]
		rows = append(rows, []string{
			command.Plain(command.Short(r.RolloutID)), command.Plain(r.Channel), stateWord(r), fmt.Sprint(r.CurrentWave + 1),
			tally(r.Words()), when(r.CreatedAt.Time), command.Plain(r.Why()),
		})
	}
	if len(rows) == 1 {
		progress(c, "no rollout is under way")
		return nil
	}
	return command.Table(c.App.Writer, rows)
}

// rolloutState adds why a rollout stands still. A v1 control plane says
// nothing of it.
func rolloutState(r *protocol.RolloutSummary) string {
	if why := command.Plain(r.Why()); why != "" {
		return stateWord(r) + " (" + why + ")"
	}
	return stateWord(r)
}

func stateWord(r *protocol.RolloutSummary) string { return command.OrDash(&r.State) }

// tally counts hosts by state, in the order of the life of a host.
func tally(states map[string]string) string {
	count := map[string]int{}
	for _, s := range states {
		count[s]++
	}
	var parts []string
	for _, state := range protocol.HostStates {
		if s := string(state); count[s] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", count[s], s))
			delete(count, s)
		}
	}
	for _, s := range sortedKeys(count) {
		parts = append(parts, fmt.Sprintf("%d %s", count[s], command.Plain(s)))
	}
	if len(parts) == 0 {
		return "-"
	}
	return strings.Join(parts, ", ")
}

func when(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05Z") }

func rolloutShow(c *cli.Context) error {
	client, err := connect(c)
	if err != nil {
		return err
	}
	var list, lifecycle jsontext.Value
	id, open, err := findRollout(c, client.Keeping(&list))
	if err != nil {
		return err
	}
	life, err := client.Keeping(&lifecycle).Lifecycle(c.Context, id)
	if err != nil {
		return explained(err, "ask for rollout "+command.Short(id))
	}
	if c.Bool("json") {
		summary, err := summaryOf(list, id)
		if err != nil {
			return fmt.Errorf("rollout %s: %w", command.Short(id), err)
		}
		return command.Text(c, fmt.Appendf(nil, `{"rollout":%s,"lifecycle":%s}`, summary, lifecycle))
	}
	w := c.App.Writer
	fmt.Fprintf(w, "rollout   %s\n", command.Plain(life.RolloutID))
	if open != nil {
		fmt.Fprintf(w, "channel   %s\nstate     %s\nwave      %d\ncreated   %s\n", command.Plain(open.Channel),
			rolloutState(open), open.CurrentWave+1, when(open.CreatedAt.Time))
	}
	if life.SupersededAt != nil {
		fmt.Fprintf(w, "superseded %s by %s\n", when(life.SupersededAt.Time), command.OrDash(life.SupersededBy))
	}
	if life.TerminalAt != nil {
		fmt.Fprintf(w, "done      %s\n", when(life.TerminalAt.Time))
	}
	if open == nil {
		return nil
	}
	rows := [][]string{{"HOST", "STATE"}}
	words := open.Words()
	for _, host := range sortedKeys(words) {
		rows = append(rows, []string{command.Plain(host), command.Plain(words[host])})
	}
	fmt.Fprintln(w)
	return command.Table(w, rows)
}

// summaryOf is what a list of rollouts says of one of them, null when nothing.
func summaryOf(list jsontext.Value, id string) (jsontext.Value, error) {
	var all struct {
		Rollouts []jsontext.Value `json:"rollouts"`
	}
	if err := json.Unmarshal(list, &all, jsontext.AllowDuplicateNames(true)); err != nil {
		return nil, err
	}
	for _, summary := range all.Rollouts {
		var r struct {
			ID string `json:"rolloutId"`
		}
		if err := json.Unmarshal(summary, &r, jsontext.AllowDuplicateNames(true)); err != nil {
			return nil, err
		}
		if r.ID == id {
			return summary, nil
		}
	}
	return jsontext.Value("null"), nil
}

func rolloutTrace(c *cli.Context) error {
	plane, err := connect(c)
	if err != nil {
		return err
	}
	id, _, err := findRollout(c, plane)
	if err != nil {
		return err
	}
	if c.Bool("events") {
		err := plane.Events(c.Context, client.EventQuery{Rollout: id, Past: true},
			func(e protocol.Event) error { return printEvent(c, &e) })
		if !errors.Is(err, io.EOF) {
			return explained(err, "trace rollout "+command.Short(id))
		}
		return nil
	}
	var trace *protocol.Trace
	var body jsontext.Value
	if c.Bool("json") && fleet.ValidRolloutID(id) {
		body, err = plane.Raw(c.Context, "/v1/rollouts/"+id+"/trace")
	} else {
		trace, err = plane.Trace(c.Context, id)
	}
	if err != nil {
		var answer *client.Error
		if errors.As(err, &answer) && answer.Status == 404 {
			return command.Hinted(fmt.Errorf("rollout %s has no dispatch on record", command.Short(id)),
				"nixfleet rollout show %s; nixfleet rollout trace %s --events prints its log", command.Short(id), command.Short(id))
		}
		return explained(err, "trace rollout "+command.Short(id))
	}
	if body != nil {
		return command.Text(c, body)
	}
	rows := [][]string{{"WAVE", "HOST", "DISPATCHED", "TERMINAL", "AT"}}
	for _, e := range trace.Events {
		at := "-"
		if e.TerminalAt != nil {
			at = when(e.TerminalAt.Time)
		}
		rows = append(rows, []string{fmt.Sprint(e.Wave + 1), command.Plain(e.Host), when(e.DispatchedAt.Time),
			command.OrDash(e.TerminalState), at})
	}
	return command.Table(c.App.Writer, rows)
}

// hold is pause, resume and cancel: a change, recorded with the certificate's
// name, so it wants a reason.
func hold(action, past string) cli.ActionFunc {
	return func(c *cli.Context) error {
		if c.NArg() == 1 && c.String("reason") == "" {
			return command.Usage("", "--reason is missing: it is recorded beside your name")
		}
		client, err := connect(c)
		if err != nil {
			return err
		}
		id, _, err := findRollout(c, client)
		if err != nil {
			return err
		}
		if err := client.Hold(c.Context, id, action, c.String("reason")); err != nil {
			return explained(err, action+" rollout "+command.Short(id))
		}
		return done(c, map[string]any{"rolloutId": id, "action": action, "reason": c.String("reason")}, "rollout %s is %s",
			command.Short(id), past)
	}
}
