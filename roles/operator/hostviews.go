package operator

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/urfave/cli/v2"

	"nixfleet/roles/command"
	"nixfleet/roles/protocol"
)

// hostViews are the verbs of a host that only look.
func hostViews() []*cli.Command {
	list := statusCommand()
	list.Name, list.Usage = "list", "the same as nixfleet status"
	return []*cli.Command{
		list,
		verb("show", "NAME", "all that is known of a host", "nixfleet host show web-07", hostShow),
		verb("explain", "NAME", "why a host is where it is, and what to do", "nixfleet host explain web-07", hostExplain),
		verb("log", "NAME", "why its last activation failed, with what the switch printed",
			"nixfleet host log web-07", hostLog),
		verb("history", "NAME", "what happened to a host, the newest last",
			"nixfleet host history web-07\n   nixfleet host history web-07 --limit 200", hostHistory,
			&cli.IntFlag{Name: "limit", Value: 50, Usage: "the newest `NUMBER` events"}),
	}
}

// askHost asks for one host. With --json its answer is printed as it came, and the host is nil.
func askHost(c *cli.Context) (*protocol.HostDetail, error) {
	name, err := oneHost(c)
	if err != nil {
		return nil, err
	}
	plane, err := connect(c)
	if err != nil {
		return nil, err
	}
	var body jsontext.Value
	d, err := plane.Keeping(&body).Host(c.Context, name)
	if err != nil {
		return nil, explained(err, "ask for "+name)
	}
	if c.Bool("json") {
		return nil, command.Text(c, body)
	}
	return d, nil
}

// facts are lines of a name and what there is to say.
type facts [][]string

func (f *facts) add(name, format string, args ...any) {
	*f = append(*f, []string{name, fmt.Sprintf(format, args...)})
}

func hostShow(c *cli.Context) error {
	d, err := askHost(c)
	if err != nil || d == nil {
		return err
	}
	now, h, w := time.Now(), &d.Host, c.App.Writer
	var f facts
	where := "channel " + command.Plain(h.Channel)
	if h.Wave != nil && d.Waves > 0 {
		where += fmt.Sprintf(", wave %s of %d", waveText(h.Wave, h.Canary), d.Waves)
	}
	f.add("host", "%s (%s)", command.Plain(h.Hostname), where)
	state := stateText(h)
	if h.Since != nil {
		state += ", since " + since(h.Since.Time, now)
	}
	f.add("state", "%s", state)
	f.add("runs", "%s", hostRuns(h, now))
	f.add("should run", "%s", command.OrDash(h.DeclaredClosureHash))
	hostAside(&f, d, now)
	f.add("last word", "%s", lastWord(h, now))
	hostAgent(&f, d, now)
	if cert := d.Certificate; cert != nil {
		f.add("certificate", "ends %s, in %s", cert.NotAfter.Format(time.DateOnly), command.Age(cert.NotAfter.Sub(now)))
	}
	if err := command.Table(w, f); err != nil {
		return err
	}
	fmt.Fprintln(w)
	printReason(w, &d.Reason, d.Failure, h.Hostname)
	if len(d.Dispatches) == 0 {
		return nil
	}
	rows := [][]string{{"DISPATCHED", "COMMIT", "WAVE", "ENDED", "AT"}}
	for _, x := range d.Dispatches[:min(len(d.Dispatches), 5)] {
		at := "-"
		if x.TerminalAt != nil {
			at = when(x.TerminalAt.Time)
		}
		rows = append(rows, []string{when(x.At.Time), command.Plain(command.Short(x.Commit)), fmt.Sprint(x.Wave + 1),
			command.Plain(x.State), at})
	}
	fmt.Fprintln(w)
	return command.Table(w, rows)
}

func since(t, now time.Time) string { return when(t) + " (" + command.Age(now.Sub(t)) + ")" }

// hostRuns is what a host runs, since when and by whom.
func hostRuns(h *protocol.HostEntry, now time.Time) string {
	text := command.OrDash(h.CurrentClosureHash)
	r := h.Running
	switch {
	case r == nil || h.CurrentClosureHash == nil:
	case r.Commit != "" && r.Since != nil:
		text += ", of release " + command.Plain(command.Short(r.Commit)) + ", confirmed " + since(r.Since.Time, now)
	case r.Commit != "":
		text += ", of release " + command.Plain(command.Short(r.Commit)) + "; it was there before its first dispatch"
	default:
		text += "; no dispatch on record put it there: by hand, or before the host was enrolled"
	}
	return text
}

// hostAside are facts that most hosts do not have.
func hostAside(f *facts, d *protocol.HostDetail, now time.Time) {
	h := &d.Host
	if h.PendingClosureHash != nil && *h.PendingClosureHash != "" {
		f.add("boots next", "%s", command.OrDash(h.PendingClosureHash))
	}
	if d.ConfirmBy != nil {
		f.add("confirms by", "%s", when(d.ConfirmBy.Time))
	}
	if d.Attempt > 1 {
		f.add("attempt", "%d", d.Attempt)
	}
	if q := d.Quarantine; q != nil {
		f.add("quarantine", "%s, since %s", command.Plain(q.Reason), since(q.Since.Time, now))
	}
	if h.Pin != nil {
		f.add("pinned", "to %s: %s", command.Plain(command.Short(h.Pin.Commit)), command.Plain(h.Pin.Reason))
	}
	if heldByRoot(h) {
		f.add("held", "%s", command.OrDash(h.Held))
	}
}

// hostAgent is what the agent said at its last check-in.
func hostAgent(f *facts, d *protocol.HostDetail, now time.Time) {
	a := d.Agent
	if a == nil {
		return
	}
	f.add("agent", "%s", command.Plain(a.Version))
	if p := a.Phase; p != nil {
		text := command.Plain(p.Name)
		if p.Since != nil {
			text += " since " + since(p.Since.Time, now)
		}
		f.add("is", "%s", text)
	}
	if a.FetchError != "" {
		f.add("fetch failed", "%s", command.Plain(a.FetchError))
	}
	if a.RebootPending != nil {
		f.add("reboot", "pending for %s", command.OrDash(a.RebootPending))
	}
	for _, probe := range a.Probes {
		text := command.Plain(probe.Name) + " " + map[string]string{protocol.ProbePass: "passes",
			protocol.ProbeFail: "FAILS", protocol.ProbeUnknown: "has not run yet"}[probe.Status]
		if probe.FailureReason != nil {
			text += ": " + command.OrDash(probe.FailureReason)
		}
		f.add("probe", "%s", text)
	}
}

// printReason says why a host is where it is, and what to do.
func printReason(w io.Writer, r *protocol.Reason, failure *protocol.HostFailure, host string) {
	gate := ""
	if r.Gate != "" {
		gate = ", gate " + command.Plain(r.Gate)
	}
	fmt.Fprintf(w, "%s [%s%s]\n", command.Plain(r.Text), command.Plain(r.Code), gate)
	if failure != nil {
		fmt.Fprintf(w, "cause: %s\n", failureText(failure))
		if failure.Log != nil && !strings.Contains(r.Next, "host log") {
			fmt.Fprintf(w, "log: nixfleet host log %s\n", command.Plain(host))
		}
	}
	if r.Next != "" {
		fmt.Fprintf(w, "next: %s\n", command.Plain(r.Next))
	}
}

// failureText is a failed activation in a line.
func failureText(f *protocol.HostFailure) string {
	text := command.Plain(f.Cause)
	if f.ExitCode != nil {
		text += fmt.Sprintf(" (exit %d)", *f.ExitCode)
	}
	return text
}

func hostExplain(c *cli.Context) error {
	name, err := oneHost(c)
	if err != nil {
		return err
	}
	client, err := connect(c)
	if err != nil {
		return err
	}
	var body jsontext.Value
	x, err := client.Keeping(&body).Explain(c.Context, name)
	if err != nil {
		return explained(err, "explain "+name)
	}
	if c.Bool("json") {
		return command.Text(c, body)
	}
	w := c.App.Writer
	fmt.Fprintf(w, "host      %s (channel %s)\nruns      %s\ndeclared  %s\nstate     %s\n", command.Plain(x.Hostname),
		command.Plain(x.Channel), command.OrDash(x.Current), command.OrDash(x.Declared), command.OrDash(x.State))
	if x.RolloutID != nil {
		fmt.Fprintf(w, "rollout   %s\n", command.Plain(command.Short(*x.RolloutID)))
	}
	if x.Wave != nil {
		fmt.Fprintf(w, "wave      %d\n", *x.Wave+1)
	}
	fmt.Fprintln(w)
	printReason(w, &x.Reason, x.Failure, x.Hostname)
	return nil
}

func hostLog(c *cli.Context) error {
	d, err := askHost(c)
	if err != nil || d == nil {
		return err
	}
	f := d.Failure
	if f == nil {
		progress(c, "no failed activation of %s is on record; what happened to it: nixfleet host history %s",
			d.Host.Hostname, d.Host.Hostname)
		return nil
	}
	w := c.App.Writer
	fmt.Fprintf(w, "%s  %s failed: %s\n", when(f.At.Time), command.Plain(d.Host.Hostname), failureText(f))
	if f.Rollout != nil {
		fmt.Fprintf(w, "in rollout %s\n", command.Plain(command.Short(*f.Rollout)))
	}
	verdict := "not signed"
	if f.Verdict != nil {
		verdict = command.Plain(*f.Verdict)
	}
	fmt.Fprintf(w, "its report is %s by the host's key\n\n", verdict)
	if f.Log == nil || strings.TrimSpace(*f.Log) == "" {
		_, err := fmt.Fprintf(w, "the report has no log; on the host: journalctl -u nixfleet-agent\n")
		return err
	}
	for line := range strings.Lines(*f.Log) {
		fmt.Fprintf(w, "  %s\n", command.Plain(strings.TrimRight(line, "\n")))
	}
	return nil
}

func hostHistory(c *cli.Context) error {
	name, err := oneHost(c)
	if err != nil {
		return err
	}
	plane, err := connect(c)
	if err != nil {
		return err
	}
	var body jsontext.Value
	history, err := plane.Keeping(&body).History(c.Context, protocol.HistoryQuery{Host: name, Limit: c.Int("limit")})
	if err != nil {
		return explained(err, "ask for the history of "+name)
	}
	if c.Bool("json") {
		return command.Text(c, body)
	}
	if len(history.Events) == 0 {
		if _, err := plane.Host(c.Context, name); err != nil {
			return explained(err, "ask for the history of "+name)
		}
		progress(c, "nothing on record has happened to %s", name)
		return nil
	}
	slices.Reverse(history.Events)
	rows := [][]string{{"AT", "WHAT", "RELEASE", "WHY", "DETAIL"}}
	for i := range history.Events {
		e := &history.Events[i]
		why := command.Plain(e.Reason)
		if e.Actor != "" {
			why = strings.TrimSpace(command.Plain(e.Actor) + " " + why)
		}
		rows = append(rows, []string{when(e.At.Time), command.Plain(e.Kind), command.Plain(command.Short(e.RolloutID)), why,
			command.Plain(e.Detail)})
	}
	return command.Table(c.App.Writer, rows)
}
