package demo

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"

	"nixfleet/roles/command"
	"nixfleet/roles/protocol"
)

// view tells the story: on a terminal with a live table of the fleet below
// it, elsewhere in plain lines, one a change.
type view struct {
	*command.View
	last map[string]string // line of each host, where there is no table
}

func newView(w io.Writer) *view {
	return &view{View: command.NewView(w), last: map[string]string{}}
}

// show takes a new view of the fleet.
func (v *view) show(hosts []protocol.HostEntry) {
	if v.Live() {
		v.Show(func(room int) ([][]string, string) { return v.table(hosts, room) })
		return
	}
	for _, h := range hosts {
		line := fmt.Sprintf("%s runs %s, %s", h.Hostname, releaseOf(h.CurrentClosureHash), word(h))
		if v.last[h.Hostname] != line {
			v.last[h.Hostname] = line
			v.Detail(line)
		}
	}
}

// table is the fleet in a table with room for so many hosts.
func (v *view) table(all []protocol.HostEntry, room int) (rows [][]string, rest string) {
	if len(all) == 0 {
		return nil, ""
	}
	hosts, rest := fitting(all, room)
	rows = [][]string{{"HOST", "CHANNEL", "RUNS", "SHOULD RUN", "STATE"}}
	for _, h := range hosts {
		runs, should := releaseOf(h.CurrentClosureHash), releaseOf(h.DeclaredClosureHash)
		rows = append(rows, []string{h.Hostname, h.Channel, runs, should, v.Paint(colourOf(h), word(h))})
	}
	return rows, rest
}

// fitting are the hosts that a table with room for so many shows, those that are
// under way before those that have arrived, and a line about the others.
func fitting(all []protocol.HostEntry, room int) (hosts []protocol.HostEntry, rest string) {
	if len(all) <= room {
		return all, ""
	}
	hosts = slices.Clone(all)
	slices.SortStableFunc(hosts, func(a, b protocol.HostEntry) int {
		return cmp.Compare(arrived(a), arrived(b))
	})
	hosts, left := hosts[:room-1], hosts[room-1:]
	there := 0
	for _, h := range left {
		there += arrived(h)
	}
	return hosts, fmt.Sprintf("… and %d more, %d of them as declared", len(left), there)
}

func arrived(h protocol.HostEntry) int {
	if word(h) == asDeclared {
		return 1
	}
	return 0
}

// releaseOf is the short name of a closure of the demonstration.
func releaseOf(closure *string) string {
	if closure == nil {
		return "-"
	}
	return "release " + (*closure)[strings.LastIndexByte(*closure, '-')+1:]
}

const asDeclared = "as declared"

// word is the state of a host in a word or two.
func word(h protocol.HostEntry) string {
	state := protocol.HostState(h.Word())
	switch {
	case h.Online != nil && !*h.Online:
		return "not heard of"
	case h.Converged && state == protocol.HostHealthy:
		return "soaking"
	case h.Converged && (state == protocol.HostDispatched || state == protocol.HostActivating ||
		state == protocol.HostConfirmWindow):
		return "confirming"
	case h.Converged:
		return asDeclared
	case h.QuarantinedClosure != nil:
		return "waits: its new closure failed"
	case state != "" && state != protocol.HostQueued:
		return strings.ToLower(string(state))
	case h.Reason != nil && waitsFor[h.Reason.Code] != "":
		return waitsFor[h.Reason.Code]
	case h.Reason != nil:
		return "waits: " + h.Reason.Code
	}
	return "waits"
}

// waitsFor are the reasons of this story in two or three words.
var waitsFor = map[string]string{
	"wave": "waits for its wave", "halted": "waits: rollout halted", "offered": "gets it next", "resent": "gets it next",
	"offline": "not heard of",
}

func colourOf(h protocol.HostEntry) command.Colour {
	text := word(h)
	switch {
	case text == asDeclared:
		return command.Green
	case h.QuarantinedClosure != nil || text == "failed" || text == "reverted":
		return command.Red
	case text == "not heard of":
		return command.Dim
	}
	return command.Yellow
}
